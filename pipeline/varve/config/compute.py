"""The section `compute`: replicas, their hardware, and limits of the run."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from varve.config.base import PositiveInt, Section, to_tuple

_VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


# Keys of earlier versions, none of which affects the bytes of an output → what replaces them.
REMOVED_KEYS = {"tokenizers": "each replica tokenizes its own texts, with all cores of its GPU's share of the node"}


class Replicas(Section):
    """A pool of replicas that grows and shrinks with the cluster."""

    min: PositiveInt = 1
    max: PositiveInt

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min > self.max:
            msg = f"min {self.min} is greater than max {self.max}"
            raise ValueError(msg)
        return self


class Compute(Section):
    """The hardware of a run."""

    replicas: Literal["auto"] | PositiveInt | Replicas = Field(
        default="auto",
        description="number of replicas; auto: as many as fit the GPUs, or the cores of a cluster without GPUs; "
        "{min, max}: a pool that follows the size of the cluster",
    )
    gpus: Literal["auto"] | Annotated[float, Field(ge=0, le=8)] = Field(
        default="auto",
        description="GPUs of each replica; 0.25: four replicas share a GPU; 0: none; auto: 1 if the cluster has GPUs",
    )
    accelerator: str | None = Field(
        default=None, description="use only GPUs of this type, by Ray's names: L4, A100, H100"
    )
    env: Annotated[tuple[_VariableName, ...], BeforeValidator(to_tuple)] = Field(
        default=(), description="environment variables that every node must have; their values are never sent"
    )
    object_store_bytes: Literal["auto"] | Annotated[int, Field(ge=78643200)] = Field(
        default="auto",
        description="shared memory for the object store of a Ray that the run itself starts; auto: Ray's default",
    )
    tokens_per_pack: Literal["auto"] | Annotated[int, Field(ge=16)] = Field(
        default="auto", description="tokens that the encoder takes in one pass; auto: by model and device"
    )
    fast_tokenizer: bool = Field(
        default=True,
        description="tokenize with a faster implementation where it gives the tokens of `tokenizers`; false: with "
        "`tokenizers`",
    )
    compile: bool = Field(default=False, description="run the layers through torch.compile, on GPUs only")
    stall_s: PositiveInt = Field(
        default=1800, description="seconds without a finished block after which the run stops with a diagnosis"
    )

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.accelerator is not None and self.gpus == 0:
            msg = f"accelerator {self.accelerator} needs gpus above 0"
            raise ValueError(msg)
        if isinstance(self.gpus, float) and self.gpus > 1 and self.gpus != int(self.gpus):
            msg = f"gpus {self.gpus} is neither a fraction of one GPU nor a whole number"
            raise ValueError(msg)
        return self

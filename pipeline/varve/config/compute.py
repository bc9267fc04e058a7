"""The section `compute`: the hardware's share."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from varve.config.base import PositiveInt, Section, tupled


class Replicas(Section):
    """A pool that grows and shrinks with the cluster."""

    min: PositiveInt = 1
    max: PositiveInt

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            msg = f"min {self.min} is more than max {self.max}"
            raise ValueError(msg)
        return self


class Compute(Section):
    """The hardware's share."""

    replicas: Literal["auto"] | PositiveInt | Replicas = Field(
        default="auto",
        description="auto: as many as the GPUs take, without GPUs as the cores take; {min, max}: as the cluster grows",
    )
    gpus: Literal["auto"] | Annotated[float, Field(ge=0, le=8)] = Field(
        default="auto",
        description="GPUs of each replica; 0.25: four replicas to a GPU; 0: none; auto: 1 where there are any",
    )
    accelerator: str | None = Field(default=None, description="only GPUs of this type, as Ray names it: L4, A100, H100")
    env: Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...], BeforeValidator(tupled)] = (
        Field(default=(), description="environment variables that every node must have; their values stay there")
    )
    object_store_bytes: Literal["auto"] | Annotated[int, Field(ge=78643200)] = Field(
        default="auto", description="of shared memory, for a Ray that the run itself starts; auto: Ray's choice"
    )
    tokens_per_pack: Literal["auto"] | Annotated[int, Field(ge=16)] = "auto"
    tokenizers: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        default="auto",
        description="tokenizing tasks at once, beside the replicas; 0: each replica tokenizes for itself, which is "
        "faster where both share the CPU; auto: 0 on a CPU, all spare cores with GPUs",
    )
    compile: bool = Field(default=False, description="run the layers through torch.compile; on GPUs only")
    stall_s: PositiveInt = Field(
        default=1800, description="seconds in which no block is finished after which a run is ended with a diagnosis"
    )

    @model_validator(mode="after")
    def _accelerators_are_gpus(self) -> Self:
        if self.accelerator is not None and self.gpus == 0:
            msg = f"accelerator {self.accelerator} needs gpus above 0"
            raise ValueError(msg)
        if isinstance(self.gpus, float) and self.gpus > 1 and self.gpus != int(self.gpus):
            msg = f"gpus {self.gpus} is neither a share of one GPU nor a whole number"
            raise ValueError(msg)
        return self

"""Whether the CPUs of a cluster have the instructions that a job's precision needs.

Knows nothing of parts. Invariant: the nodes with CPUs are asked, not the driver's machine, which may encode nothing.
"""

from varve.cluster.nodes import Cluster, run_on_nodes
from varve.cluster.placement import Placement
from varve.config.model import Model
from varve.errors import JobError

_MAX_SHOWN = 5


def check_instructions(model: Model, cluster: Cluster, placement: Placement) -> None:
    """Check that the CPUs on which replicas may run multiply bfloat16 numbers, if the job asks for them.

    Raises:
        JobError: a node's CPU lacks the instructions; the message names the node.
    """
    if model.dtype != "bfloat16" or placement.device != "cpu":
        return
    nodes = [node for node in cluster.nodes if node.cpus]
    answers = run_on_nodes(nodes, _supports_bfloat16)
    lacking = [address for address, has_instructions in answers.items() if not has_instructions]
    if lacking:
        more = f" and {len(lacking) - _MAX_SHOWN} more" if len(lacking) > _MAX_SHOWN else ""
        msg = (
            "model.dtype: bfloat16 on a CPU needs AVX512-BF16 or AMX instructions, and "
            f"{', '.join(lacking[:_MAX_SHOWN])}{more} of {len(answers)} node(s) lack them. Set dtype: float32"
        )
        raise JobError(msg)


def _supports_bfloat16() -> bool:
    from varve.encoder.kernels.cpu_library import supports_bfloat16  # noqa: PLC0415 (imports torch)

    return supports_bfloat16()

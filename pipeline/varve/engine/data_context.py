"""Options of Ray Data for Varve's own dataflows; those of the caller's program stay as they are."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext

from varve.process_state import keep_log_levels

logger = logging.getLogger(__name__)

OPTIONS = {
    # Bytes: parts with less text travel together, since scheduling a block can cost more than encoding it; others one
    # by one. The slowest CPU encodes so many bytes in seconds: that is what the death of a worker may cost.
    "target_max_block_size": 16 << 10,
    "enable_progress_bars": False,
    "print_on_execution_start": False,
    # Replicas that die one after the other before they are ready.
    "max_consecutive_actor_init_deaths": 3,
    # Ray counts whole parts, which may take longer than any bound; the watchdog counts blocks.
    "execution_no_progress_timeout_s": -1,
    # Otherwise all that remains of a replica's exception is the text of its traceback.
    "raise_original_map_exception": True,
}


@contextmanager
def quiet_ray_data(context: DataContext) -> Iterator[None]:
    """Run dataflows inside with these options; Ray Data logs critical errors only.

    Warnings are ignored inside: Ray 2.60 has no other place for bounds on retries than arguments that it calls
    deprecated.
    """
    restore_level = keep_log_levels("ray.data")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), DataContext.current(context):
            yield
    finally:
        restore_level()


def make_context() -> DataContext:
    """A copy of the current context with the options of a run's dataflow."""
    context = DataContext.get_current().copy()
    for name, value in OPTIONS.items():
        if hasattr(context, name):
            setattr(context, name, value)
        else:  # DataContext accepts any name, so an option that was renamed would be lost without notice
            logger.warning("Ray %s has no DataContext option %s: Varve expects Ray below 2.61", ray.__version__, name)
    _bound_queues(context)
    return context


def _bound_queues(context: DataContext) -> None:
    try:
        from varve.engine.backpressure import bound_queues  # noqa: PLC0415 (imports modules that Ray may move)

        bound_queues(context)
    except Exception as e:  # noqa: BLE001 (private parts of Ray; results do not depend on them)
        logger.warning(
            "Ray %s: queues between stages are not bounded, and the driver's memory grows: %s", ray.__version__, e
        )

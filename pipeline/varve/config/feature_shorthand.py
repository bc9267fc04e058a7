"""The short form of features on the command line and in Python: `NAME=POOL[@LAYERS][+OPTION]...`."""

from collections.abc import Mapping
from typing import Any

from varve.config.feature import Computed, Feature
from varve.config.validation_errors import validate_section
from varve.errors import JobError


def parse_features(features: Mapping[str, Feature | str]) -> dict[str, Feature]:
    """Return the definitions of features given as definitions or in short form.

    Raises:
        JobError: a short form is wrong.
    """
    return {name: _to_feature(name, feature) for name, feature in features.items()}


def _to_feature(name: str, feature: object) -> Feature:
    if isinstance(feature, Feature):
        return feature
    if isinstance(feature, Computed):
        msg = f"features.{name}: Python functions are features of jobs only: call {feature.python} yourself"
        raise JobError(msg)
    return validate_section(Feature, parse_feature(f"{name}={feature}")[1], f"features.{name}")


def parse_feature(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME=POOL[@LAYERS][+OPTION]...` → (NAME, feature as a mapping).

    LAYERS is `all` or numbers separated by commas; OPTION is normalize, concat, sum, mean, special_tokens,
    dimensions=N, strategy=sum, max_active_dims=N or token_pooling=N.

    Raises:
        JobError: the text does not have this form.
    """
    name, _, rest = text.partition("=")
    definition, *options = rest.split("+")
    pool, _, layers = definition.partition("@")
    feature: dict[str, Any] = {"pool": pool}
    try:
        if layers:
            numbers = [layers] if layers == "all" else [int(number) for number in layers.split(",")]
            feature["layers"] = numbers if len(numbers) > 1 else numbers[0]
        for option in options:
            feature |= _parse_option(option)
        is_complete = bool(name and pool)
    except (ValueError, KeyError):
        is_complete = False
    if not is_complete:
        msg = (
            f"--feature {text!r}: expected NAME=POOL[@LAYERS][+OPTION]..., for example embedding=mean@-1+normalize. "
            "LAYERS is all, or numbers separated by commas. OPTION is normalize, concat, sum, mean, special_tokens, "
            "dimensions=N, strategy=sum, max_active_dims=N or token_pooling=N"
        )
        raise JobError(msg)
    return name, feature


def _parse_option(option: str) -> dict[str, Any]:
    key, _, value = option.partition("=")
    if key in {"dimensions", "max_active_dims", "token_pooling"}:
        return {key: int(value)}
    if key == "strategy":
        return {key: value}
    combined: dict[str, dict[str, Any]] = {how: {"combine": how} for how in ("concat", "sum", "mean")}
    return {**combined, "normalize": {"normalize": True}, "special_tokens": {"special_tokens": True}}[option]

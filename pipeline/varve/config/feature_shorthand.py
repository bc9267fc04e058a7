"""Features as the command line writes them: `NAME=POOL[@LAYERS][+OPTION]...`."""

from collections.abc import Mapping
from typing import Any

from varve.config.feature import DEFAULT_FEATURES, Computed, Feature
from varve.config.validation_errors import checked
from varve.errors import JobError


def parse_features(features: Mapping[str, Feature | str] | None) -> dict[str, Feature]:
    """Definitions from definitions or their short forms; the mean of the last layer where there are none.

    Raises:
        JobError: a short form is wrong.
    """
    return {name: _parsed(name, feature) for name, feature in (features or DEFAULT_FEATURES).items()}


def _parsed(name: str, feature: object) -> Feature:
    if isinstance(feature, Feature):
        return feature
    if isinstance(feature, Computed):
        msg = f"features.{name}: a Python function is a feature of jobs alone: call {feature.python} yourself"
        raise JobError(msg)
    return checked(Feature, parse_feature(f"{name}={feature}")[1], f"features.{name}")


def parse_feature(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME=POOL[@LAYERS][+OPTION]...` → (NAME, feature), as the command line writes features.

    LAYERS is `all` or numbers with commas; OPTION is normalize, concat, sum, mean, special_tokens or dimensions=N.

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
            feature |= _feature_option(option)
        complete = bool(name and pool)
    except (ValueError, KeyError):
        complete = False
    if not complete:
        msg = (
            f"--feature {text!r}: expected NAME=POOL[@LAYERS][+OPTION]..., for example embedding=mean@-1+normalize; "
            "LAYERS is all or numbers with commas, OPTION one of normalize, concat, sum, mean, special_tokens, "
            "dimensions=N"
        )
        raise JobError(msg)
    return name, feature


def _feature_option(option: str) -> dict[str, Any]:
    key, _, value = option.partition("=")
    if key == "dimensions":
        return {"dimensions": int(value)}
    known: dict[str, dict[str, Any]] = {how: {"combine": how} for how in ("concat", "sum", "mean")}
    return {**known, "normalize": {"normalize": True}, "special_tokens": {"special_tokens": True}}[option]

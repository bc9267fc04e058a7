"""The identity of a feature set: all that a vector is a function of, without the source.

Two runs with equal identities give equal vectors for equal texts, within the tolerance of the compute dtype if that is
`auto` on different hardware. Knows nothing of tables.
"""

import hashlib
import json
from dataclasses import dataclass

import pyarrow as pa

from varve.config.job import Job
from varve.encoder.checkpoint.defaults import make_feature_plan, resolve_max_tokens
from varve.encoder.checkpoint.heads import default_features
from varve.encoder.feature_plan import FeaturePlan
from varve.lake.text_hash import HASH_VERSION
from varve.output.schema import output_schema
from varve.planning.model_identity import hash_heads, inspect_model
from varve.planning.plan import code_identity
from varve.preprocessing.computed_columns import ComputedColumn, find_computed

# Settings of the model that its hashes replace, or that change nothing in a vector.
_NOT_IDENTITY = ("name", "revision", "trust_remote_code", "max_tokens")


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """The features of a job, with all defaults resolved.

    Attributes:
        sha256: the identity.
        job: with its features.
        feature_plan: of the features.
        computed: columns of the user's functions.
    """

    sha256: str
    job: Job
    feature_plan: FeaturePlan
    computed: tuple[ComputedColumn, ...]

    def output_schema(self, kept: pa.Schema) -> pa.Schema:
        """The columns of a part.

        Args:
            kept: columns that come from the source.
        """
        pairs = len(self.job.source.text_columns) > 1
        return output_schema(self.feature_plan, kept, pairs=pairs, computed=self.computed)


def find_feature_set(job: Job) -> FeatureSet:
    """Resolve the features of a job.

    Raises:
        JobError: the model cannot be read, or a feature does not fit it.
    """
    checkpoint = inspect_model(job.model, job.model.revision)
    if job.features is None:
        job = job.with_features(default_features(checkpoint))
    feature_plan = make_feature_plan(job.model, job.pooled, checkpoint, job.output.dtype)
    computed = find_computed(job.computed, job.folder)
    content = job.model_dump(mode="json")
    identity = {
        "hash": HASH_VERSION,
        "texts": len(job.source.text_columns),
        "model": {key: value for key, value in content["model"].items() if key not in _NOT_IDENTITY},
        "features": content["features"],
        "dtype": job.output.dtype,
        "code": code_identity(computed),
        "weights": checkpoint.weights_sha256,
        "tokenizer": checkpoint.tokenizer_sha256,
        "config": checkpoint.config_sha256,
        "heads": hash_heads(job.model, feature_plan, checkpoint),
        "max_tokens": resolve_max_tokens(job.model, checkpoint, feature_plan),
    }
    sha256 = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return FeatureSet(sha256, job, feature_plan, computed)

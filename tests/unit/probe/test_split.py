import numpy as np
import pytest

from varve.probe.data import split


@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_whole_and_classes_keep_their_shares(seed):
    rng = np.random.default_rng(seed)
    groups = rng.zipf(1.6, 3000) % 700
    target = (groups * 7919 % 10 < 3).astype(int)  # the same in all rows of a group
    codes = np.unique(groups, return_inverse=True)[1]
    splits = split.assign(target, codes, seed)
    assert all(len(set(splits[codes == code])) == 1 for code in range(codes.max() + 1))
    single = split.assign(target, np.arange(3000), seed)
    for which, share in enumerate((0.7, 0.15, 0.15)):
        assert (single == which).mean() == pytest.approx(share, abs=0.01)
        assert target[single == which].mean() == pytest.approx(target.mean(), abs=0.01)
    assert (split.assign(target, codes, seed) == splits).all()
    assert (split.assign(target, codes, seed + 9) != splits).any()


@pytest.mark.parametrize("rows", [20, 30, 40, 99])
def test_few_numbers_are_split_in_the_same_shares(rows):
    strata = split.strata_of(np.random.default_rng(0).normal(size=rows))
    sizes = np.bincount(split.assign(strata, np.arange(rows), seed=0), minlength=3)
    assert sizes == pytest.approx([rows * 0.7, rows * 0.15, rows * 0.15], abs=3)
    assert sizes.min() >= 2

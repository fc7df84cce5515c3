"""Is it the data's distribution? Two-sample tests, coverage, memorisation, distances, noise floors."""

from dgm_jax.metrics.classifier import classifier_test, logistic, mlp, nearest_neighbours
from dgm_jax.metrics.conditional import conditional_mmd_test
from dgm_jax.metrics.coverage import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from dgm_jax.metrics.discrepancies import BlockEstimate, block_mmd, energy_distance, mmd
from dgm_jax.metrics.floor import NoiseFloor, noise_floor
from dgm_jax.metrics.frechet import Extrapolation, frechet_distance, frechet_infinity, frechet_of
from dgm_jax.metrics.inception import InceptionScore, inception_score
from dgm_jax.metrics.inception_features import load_inception
from dgm_jax.metrics.intervals import Interval, bootstrap_interval
from dgm_jax.metrics.kernel_distance import kernel_distance
from dgm_jax.metrics.kernels import (
    Kernel,
    distance_kernel,
    gaussian,
    laplace,
    median_distance,
    polynomial,
    rational_quadratic,
)
from dgm_jax.metrics.memorization import memorization_test
from dgm_jax.metrics.modes import (
    ModeScores,
    birthday_batch,
    duplicate_pairs,
    mode_scores,
    mode_shares_test,
    modes_captured,
    nearest_mode,
    reverse_kl,
    support_size,
)
from dgm_jax.metrics.moments import Moments, init_moments, merge_moments, update_moments
from dgm_jax.metrics.neighbours import Neighbours, nearest, nearest_other
from dgm_jax.metrics.records import Distance, Record, difference
from dgm_jax.metrics.relative import relative_mmd_test
from dgm_jax.metrics.samples import Test
from dgm_jax.metrics.two_sample import energy_test, mmd_test, permutation_test
from dgm_jax.metrics.wasserstein import sliced_wasserstein, wasserstein, wasserstein_along
from dgm_jax.metrics.wild_bootstrap import wild_energy_test, wild_mmd_test

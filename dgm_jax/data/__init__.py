"""Data: toy densities with exact scores, named and own data as random-access sources, endless batches, images."""

from dgm_jax.data.arrays import from_array
from dgm_jax.data.batches import batches
from dgm_jax.data.densities import Checkerboard, Density, GaussianMixture, isotropic
from dgm_jax.data.folders import from_folder
from dgm_jax.data.images import from_unit, to_unit
from dgm_jax.data.records import Source, load
from dgm_jax.data.sources import download, source
from dgm_jax.data.toy import checkerboard, grid, ring, swiss_roll, two_moons, unequal_mixture

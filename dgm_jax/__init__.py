"""Deep generative models as pure functions in JAX: processes, denoisers, and one diffrax solve.

Import the sub-package that is needed: `processes`, `networks`, `parameterizations`, `losses`, `samplers`,
`likelihood`, `training`, `data`. Importing this package computes nothing and touches no device.
"""

__version__ = "0.1.0"

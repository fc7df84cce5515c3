"""Linear operators against dense matrices that NumPy and SciPy make of them: adjoints, solves, pseudo-inverses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from dgm_jax.parameterizations import operators
from dgm_jax.parameterizations.operators import LinearOperator, pseudo_inverse, residual, solved

RNG = np.random.default_rng(0)
EVENT, BATCH = (4, 6, 3), 2
KERNEL = np.array([[0.1, 0.2, 0.0], [0.3, 0.25, 0.15], [0.05, 0.0, 0.4]])
MASK = RNG.random(EVENT) < 0.6
ROWS = RNG.standard_normal((5, *EVENT))
WEIGHTS = np.array([0.3, 0.6, 0.1])


def moving_sum(x):
    """Linear, and none of the constructors'."""
    return x[:, 1:] + 0.5 * x[:, :-1]


def dense(apply):
    """The matrix of a NumPy function of one event."""
    basis = np.eye(int(np.prod(EVENT))).reshape(-1, *EVENT)
    return np.stack([np.asarray(apply(e)).reshape(-1) for e in basis], axis=1)


CASES = {
    "mask": (lambda: operators.mask(MASK), lambda x: x * MASK),
    "blur": (
        lambda: operators.blur(KERNEL),
        lambda x: np.stack([scipy.ndimage.convolve(x[..., c], KERNEL, mode="wrap") for c in range(3)], -1),
    ),
    "downsample": (
        lambda: operators.downsample((2, 3)),
        lambda x: np.array([[x[i : i + 2, j : j + 3].mean((0, 1)) for j in (0, 3)] for i in (0, 2)]),
    ),
    "grayscale": (lambda: operators.grayscale(WEIGHTS), lambda x: (x * WEIGHTS).sum(-1, keepdims=True)),
    "matrix": (lambda: operators.matrix(ROWS), lambda x: (ROWS * x).sum((1, 2, 3))),
    "linear": (lambda: operators.linear(moving_sum, EVENT), lambda x: x[1:] + 0.5 * x[:-1]),
}


@pytest.mark.parametrize("name", CASES)
def test_apply_adjoint_solve_and_pseudo_inverse_are_those_of_the_dense_matrix(name):
    make, apply = CASES[name]
    matrix = dense(apply)
    with jax.enable_x64(True):
        operator = make()
        x = RNG.standard_normal((BATCH, *EVENT))
        y = operator(jnp.asarray(x))
        flat = matrix @ x.reshape(BATCH, -1).T
        np.testing.assert_allclose(y.reshape(BATCH, -1).T, flat, atol=1e-12)

        other = RNG.standard_normal(y.shape)
        back = operator.adjoint(jnp.asarray(other))
        np.testing.assert_allclose(np.vdot(y, other), np.vdot(x, back), rtol=1e-12)

        gram = matrix @ matrix.T
        a, b = np.array([0.7, 2.0]), np.array([0.3, 0.05])
        expected = [np.linalg.solve(a[i] * gram + b[i] * np.eye(len(gram)), flat[:, i]) for i in range(BATCH)]
        found = solved(operator, y, jnp.asarray(a), jnp.asarray(b)).reshape(BATCH, -1)
        np.testing.assert_allclose(found, expected, atol=1e-9)

        found = pseudo_inverse(operator, y).reshape(BATCH, -1).T
        np.testing.assert_allclose(found, np.linalg.pinv(matrix) @ flat, atol=1e-9)


def test_conjugate_gradients_and_closed_forms_agree_and_keep_examples_apart():
    """The same operator without its `solve`; an example's answer does not depend on its neighbours."""
    with jax.enable_x64(True):
        whole = operators.blur(KERNEL)
        iterated = LinearOperator(whole.apply, whole.adjoint)
        y = jnp.asarray(RNG.standard_normal((3, *EVENT))) * jnp.asarray([1e-3, 1.0, 1e3])[:, None, None, None]
        expected, found = (solved(operator, y, 1.0, 0.1) for operator in (whole, iterated))
        np.testing.assert_allclose(found[0] * 1e3, expected[0] * 1e3, atol=1e-9)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(solved(iterated, y[:1], 1.0, 0.1), found[:1], rtol=1e-12)
        nothing = solved(iterated, jnp.zeros((1, *EVENT)), 1.0, 0.1)
        np.testing.assert_array_equal(nothing, 0.0)


@pytest.mark.parametrize("name", CASES)
def test_precision_is_the_inputs_and_one_program_serves_both_ways(name):
    operator = CASES[name][0]()
    x = jnp.asarray(RNG.standard_normal((BATCH, *EVENT)), jnp.float32)
    whole = jax.jit(lambda x: pseudo_inverse(operator, operator(x)))(x)
    assert whole.dtype == x.dtype
    # A^+ A is a projection
    np.testing.assert_allclose(
        jax.vmap(lambda x: pseudo_inverse(operator, operator(x[None]))[0])(whole), whole, atol=3e-4
    )


@pytest.mark.parametrize("name", ["blur", "matrix"])
def test_sixteen_bits_are_solved_in_thirty_two(name):
    """No Fourier transform takes bfloat16, and its eps of 1/128 would take weak eigenvalues for rounding."""
    operator = operators.blur(np.array([0.3, 1.0, 0.2])) if name == "blur" else operators.matrix(np.array([[1.0, 0.1]]))
    y = operator(jnp.asarray(RNG.standard_normal((BATCH, 5 if name == "blur" else 2)), jnp.bfloat16))
    found = pseudo_inverse(operator, y)
    assert (y.dtype, found.dtype) == (jnp.bfloat16, jnp.bfloat16)
    expected = pseudo_inverse(operator, y.astype(jnp.float32))
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0.02, atol=0.02)


def test_what_is_not_measured_is_not_looked_at():
    y = np.where(MASK, 1.0, np.nan).astype(np.float32)
    error = residual(operators.mask(MASK), y, jnp.zeros((BATCH, *EVENT)))
    np.testing.assert_array_equal(error, np.broadcast_to(MASK, (BATCH, *EVENT)))
    each = np.stack([MASK, ~MASK])
    error = residual(operators.mask(each), np.ones((BATCH, *EVENT), np.float32), jnp.zeros((BATCH, *EVENT)))
    np.testing.assert_array_equal(error, each)


def affine(x):
    return x + 1.0


X = jnp.zeros((BATCH, *EVENT))
EACH = jnp.arange(1.0, BATCH + 1)[:, None, None, None]  # a factor of each example's own


def times_each(x):
    return x * EACH


BAD = {
    "mask of another shape": (lambda: operators.mask(MASK[:2])(X), "Expected a mask of shape"),
    "mask that broadcasts": (lambda: operators.mask(MASK[..., :1])(X), "Expected a mask of shape"),
    "mask of shares": (lambda: operators.mask(0.5 * MASK), "Expected a mask of true and false"),
    "y of another shape": (lambda: residual(operators.mask(MASK), np.ones((3, *EVENT)), X), "Expected y of shape"),
    "even kernel": (lambda: operators.blur(KERNEL[:2]), "Expected a kernel of odd sizes"),
    "large kernel": (lambda: operators.blur(np.ones((5, 5)))(X), "Expected a kernel no larger"),
    "factor": (lambda: operators.downsample(0), "Expected whole factors"),
    "factor that leaves a rest": (lambda: operators.downsample(4)(X), "Expected factors that divide"),
    "channels": (lambda: operators.grayscale(np.ones(4))(X), "Expected 4 channels"),
    "weights": (lambda: operators.grayscale(np.ones((3, 3))), r"Expected weights \[channels\]"),
    "rows": (lambda: operators.matrix(np.ones((5, 7)))(X), "Expected events of shape"),
    "no rows": (lambda: operators.matrix(np.ones(5)), r"Expected a matrix \[rows, \*event\]"),
    "square": (lambda: operators.linear(lambda x: x**2, EVENT), "Expected a linear function of x"),
    "affine": (lambda: operators.linear(affine, EVENT), "Expected a linear function of x, which is 0 at x = 0"),
    "of one batch": (lambda: operators.linear(times_each, EVENT), "Expected a function of batches of any size"),
    "conjugate gradients of one batch": (
        lambda: pseudo_inverse(LinearOperator(times_each, times_each), X),
        "Expected an operator of batches of any size",
    ),
    "event shape": (lambda: operators.linear(moving_sum, 3), "Expected event_shape to be a tuple"),
    "kernel of NaN": (lambda: operators.blur(np.full(3, np.nan)), "Expected the kernel to be finite"),
    "weights of 0": (lambda: operators.grayscale(np.zeros(3)), "Expected the weights to be finite and not all 0"),
    "matrix of nothing": (lambda: operators.matrix(np.ones((0, *EVENT))), "Expected the matrix to be finite and not"),
    "no adjoint": (lambda: pseudo_inverse(LinearOperator(moving_sum), X), "Expected a LinearOperator with an adjoint"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_operators_are_refused(untyped, name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()

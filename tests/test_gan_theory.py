"""GANs at the equilibrium, far from it and against a perfect discriminator: the theory of the experiments.

The Dirac-GAN is written again in numpy from the paper's gradients, in the paper's sign of psi, with its expectations by
the trapezoidal rule and its Jacobians by central differences.
"""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
import scipy.stats

from dgm_jax.losses.adversarial import minimax, non_saturating
from dgm_jax.networks.dense import DenseCritic, DenseGenerator
from experiments import dirac_gan, gan_distances, gan_perfect_discriminator
from tests.test_experiments import check_pictures, experiment
from tests.test_paper_experiments import default_jax, smoke  # noqa: F401  (a fixture)

CONFIG = dirac_gan.Config()
H = CONFIG.rate


def in_process(module, directory):
    """The records of a smoke run, without the seconds that another Python takes to start."""
    module.main(replace(module.SMOKE, run_dir=str(directory)))
    assert (directory / "scores.json").exists()
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# Dirac-GAN: the paper's game ------------------------------------------------------------------------------------


def slope(t):
    """f'(t) of f(t) = -log(1 + exp(-t))."""
    return 1 / (1 + np.exp(t))


def expected(function, std):
    """E function(std N(0, 1)), by the trapezoidal rule, whose error on a decaying smooth function is below rounding."""
    if std == 0:
        return function(0.0)
    e = np.linspace(-9, 9, 401) * std
    return np.sum(function(e) * scipy.stats.norm.pdf(e, scale=std)) * (e[1] - e[0])


def ascent(name, theta, psi):
    """(d theta, d psi) that the paper's players follow: theta down and psi up E f(psi x) + E f(-psi data)."""
    if name.startswith("WGAN"):
        kink = CONFIG.penalty * (abs(psi) - CONFIG.target) * np.sign(psi) if name == dirac_gan.KINKED else 0.0
        return np.array([-psi, theta - kink])
    std = CONFIG.noise if name == "instance noise" else 0.0
    of_theta = -psi * expected(lambda e: slope((-1 if name == "non-saturating" else 1) * psi * (theta + e)), std)
    of_psi = expected(lambda e: (theta + e) * slope(psi * (theta + e)) - e * slope(-psi * e), std)
    gamma = {"R1": CONFIG.gamma, "R2": CONFIG.gamma, "R1, critical": CONFIG.critical}.get(name, 0.0)
    if name == "consensus":
        field = np.array([of_theta, of_psi])
        penalty = central(lambda at: np.array([np.sum(ascent("GAN", *at) ** 2) / 2]), np.array([theta, psi]))[0]
        return field - CONFIG.consensus * penalty
    return np.array([of_theta, of_psi - gamma * psi])


def central(function, at, step=1e-4):
    """The Jacobian by fourth-order central differences."""
    columns = []
    for e in np.eye(len(at)) * step:
        columns.append((8 * (function(at + e) - function(at - e)) - function(at + 2 * e) + function(at - 2 * e)) / 12)
    return np.stack(columns, axis=1) / step


def updated(name, kind, point):
    """(theta, psi) after one step of that kind."""
    force = partial(ascent, name)
    if kind == "simultaneous":
        return point + H * force(*point)
    if kind == "extragradient":
        return point + H * force(*(point + H * force(*point)))
    theta, psi = point
    for _ in range(5 if "5" in kind else 1):
        psi = psi + H * force(theta, psi)[1]
    return np.array([theta + H * force(theta, psi)[0], psi])


KINDS = ("simultaneous", "alternating", "alternating, k = 5", "extragradient")
NAMES = tuple(dirac_gan.methods(CONFIG))


@pytest.mark.parametrize("name", NAMES)
def test_the_theory_is_the_spectrum_of_the_papers_updates(name):
    """Central differences of the paper's game; a root moves by the matrix's error over the gap, or its square root."""
    method = dirac_gan.methods(CONFIG)[name]
    at = np.array([0.0, 0.5 if name == dirac_gan.KINKED else 0.0])
    for kind in KINDS:
        theory = dirac_gan.theory(kind, H, method.slope, method.damping)
        matrix = central(partial(updated, name, kind), at)
        found = dirac_gan.matched(np.linalg.eigvals(matrix.astype(complex)), theory)
        # rounding 1e-13 (nested differences for consensus 1e-10) over steps of 1e-4
        error = 1e-5 if name == "consensus" else 1e-8
        bound = error / max(abs(theory[0] - theory[1]), np.sqrt(error))
        assert abs(found - theory).max() < bound, (kind, found, theory)


def test_lemma_2_4_the_unit_circle_and_its_end():
    """Alternating steps keep to the circle for sqrt(k) h f'(0) <= 2 and leave it beyond."""
    for rate in (0.5, 1.7, 3.9):
        np.testing.assert_allclose(abs(dirac_gan.theory("alternating", rate, 0.5, (0.0, 0.0))), 1.0, rtol=1e-12)
    assert abs(dirac_gan.theory("alternating", 4.1, 0.5, (0.0, 0.0))).max() > 1.3
    edge = 4 / np.sqrt(5)
    np.testing.assert_allclose(abs(dirac_gan.theory(KINDS[2], 0.99 * edge, 0.5, (0.0, 0.0))), 1.0, rtol=1e-12)
    assert abs(dirac_gan.theory(KINDS[2], 1.01 * edge, 0.5, (0.0, 0.0))).max() > 1.1


@pytest.mark.parametrize("name", ["instance noise", "WGAN-GP"])
def test_the_librarys_steps_are_the_papers(name):
    """Three steps of each kind from (1, 1), which in the paper's sign is psi = -1."""
    method = dirac_gan.methods(CONFIG)[name]
    for kind, played in dirac_gan.play(method, (0.5, 0.0), rate=H, steps=3).items():
        point = np.array([1.0, -1.0])
        for psi, theta in played.path:
            point = updated(name, kind, point)
            np.testing.assert_allclose([theta, -psi], point, atol=1e-9)


def test_wgan_gp_moves_however_near_the_equilibrium():
    """By h lambda g_0 along psi: no fixed point there."""
    method = dirac_gan.methods(CONFIG)[dirac_gan.KINKED]
    with jax.numpy_dtype_promotion("standard"):
        arrows = dirac_gan.field(method, H, np.array([[1e-9, 0.0], [-1e-9, 0.0]]))
    np.testing.assert_allclose(arrows[:, 0], np.array([1, -1]) * CONFIG.penalty * CONFIG.target, rtol=1e-6)


def test_dirac_gan_smoke(tmp_path):
    records = smoke("dirac_gan", tmp_path)
    check_pictures(tmp_path, {"dirac_gan.png"})
    assert {(r["method"], r["step_kind"]) for r in records} == {(name, kind) for name in NAMES for kind in KINDS}
    assert all(r["difference"] <= r["allowed"] < 1e-6 for r in records), records
    assert "is done" in experiment("experiments.dirac_gan", "--smoke", "--run-dir", str(tmp_path)).stdout


# distances between lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [-0.6, 0.0, 0.3])
def test_distances_of_two_lines(theta):
    """The best matching of equally spaced points, and the divergence of histograms."""
    z = (np.arange(50) + 0.5) / 50
    real, fake = (np.stack([np.full(50, at), z], axis=1) for at in (0.0, theta))
    cost = scipy.spatial.distance.cdist(real, fake)
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    np.testing.assert_allclose(gan_distances.earth_mover(np.array(theta)), cost[rows, columns].mean(), atol=1e-12)
    edges = [np.linspace(-1.05, 1.05, 22), np.linspace(0, 1, 6)]
    shares = [np.histogramdd(x, edges)[0].ravel() / 50 for x in (real, fake)]
    divergence = scipy.spatial.distance.jensenshannon(*shares) ** 2
    np.testing.assert_allclose(gan_distances.jensen_shannon(np.array(theta)), divergence, atol=1e-12)


@pytest.mark.parametrize("theta", [-1.0, 0.0, 0.4])
def test_the_best_linear_critic_under_a_soft_penalty(theta):
    def loss(slope):
        return slope * theta + 10 * (abs(slope) - 1) ** 2

    found = [scipy.optimize.minimize_scalar(loss, bounds=side, method="bounded") for side in ((-3, 0), (0, 3))]
    says = max(-best.x * theta for best in found)
    np.testing.assert_allclose(gan_distances.soft_earth_mover(np.array(theta), 10.0), says, atol=1e-5)


def test_gan_distances_smoke(tmp_path, default_jax, no_network):  # noqa: F811
    records = in_process(gan_distances, tmp_path)
    check_pictures(tmp_path, {"gan_distances.png"})
    by_theta = {record["theta"]: record for record in records}
    assert sorted(by_theta) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    divergence = {theta: np.mean(record["GAN"]) for theta, record in by_theta.items()}
    # a lower bound on log 2, from 4,096 points of each line: within 4 standard errors of a mean of values below 1
    assert all(value < np.log(2) + 4 / np.sqrt(4096) for value in divergence.values())
    assert abs(divergence[0.0]) < 4 / np.sqrt(4096)
    assert min(divergence[-1.0], divergence[1.0]) > 0.3


# a perfect discriminator ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log(1 - D)", "-log D"])
def test_gradients_of_a_linear_pair_by_hand(name, default_jax):  # noqa: F811
    """g(z) = z W + b and V(x) = x u + c: each batch's gradient is a mean of outer products, here in numpy."""
    config = gan_perfect_discriminator.Config(generator=(), discriminator=(), latent=3, batch=5)
    nets = gan_perfect_discriminator.networks(config)._replace(
        generator=DenseGenerator((), (2,)), discriminator=DenseCritic(())
    )
    generator = nets.generator.init(jax.random.key(0), jnp.zeros((1, 3)))
    discriminator = nets.discriminator.init(jax.random.key(1), jnp.zeros((1, 2)))
    keys = jax.random.split(jax.random.key(2), 7)
    loss = {"log(1 - D)": minimax, "-log D": non_saturating}[name]
    found = gan_perfect_discriminator.generator_gradients(nets, loss, discriminator, generator, keys, 5)

    layers = [jax.tree.map(lambda a: np.asarray(a, np.float64), p["params"]["out"]) for p in (generator, discriminator)]
    gradients = []
    for key in keys:
        z = np.asarray(jax.random.normal(key, (5, 3)), np.float64)
        x = z @ layers[0]["kernel"] + layers[0]["bias"]
        logit = (x @ layers[1]["kernel"] + layers[1]["bias"])[:, 0]
        share = 1 / (1 + np.exp(-logit))
        weight = -share if name == "log(1 - D)" else share - 1
        of_x = weight[:, None] * layers[1]["kernel"].T / 5
        gradients.append(np.concatenate([of_x.sum(0), (z.T @ of_x).ravel()]))
    norms = np.linalg.norm(gradients, axis=1)
    np.testing.assert_allclose(found.norm, norms.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.norm_variance, norms.var(ddof=1), rtol=1e-3)  # a difference of near numbers
    np.testing.assert_allclose(found.variance, np.cov(np.transpose(gradients)).trace(), rtol=1e-4)


def test_every_epoch_is_a_permutation():
    rows = gan_perfect_discriminator.orders(np.random.default_rng(0), 10, 3, 7)
    assert rows.shape == (7, 3)
    for epoch in (rows[:3], rows[3:6]):
        assert len(np.unique(epoch)) == 9


def test_gan_perfect_discriminator_smoke(tmp_path, default_jax, no_network):  # noqa: F811
    records = in_process(gan_perfect_discriminator, tmp_path)
    check_pictures(tmp_path, {"gan_perfect_discriminator.png"})
    assert [(r["stage"], r["iteration"]) for r in records] == [(s, i) for s in (1, 2) for i in (0, 20, 40, 60)]
    for stage in (1, 2):
        first, *_, last = (r for r in records if r["stage"] == stage)
        assert last["accuracy"] > 0.95 > first["accuracy"]
        for record in (first, last):
            assert all(np.isfinite(list(record[name].values())).all() for name in ("log(1 - D)", "-log D"))
        ratio = {name: last[name]["norm"] / first[name]["norm"] for name in ("log(1 - D)", "-log D")}
        assert ratio["log(1 - D)"] < 1 < ratio["-log D"]
    assert json.loads((tmp_path / "scores.json").read_text()).keys() == {"1 epochs", "2 epochs"}

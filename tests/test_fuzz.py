"""Configurations drawn at random: what comes out is finite and of the right shape and dtype, or one error of our own.

Errors of our own begin with "Expected" and come while a program is traced, before anything is computed. Whatever else
is raised, and NaN, is a failure.
"""

import math
import tempfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgm_jax import networks, processes, samplers
from dgm_jax.data import batches, from_array, from_unit, to_unit
from dgm_jax.losses import diffusion_loss
from dgm_jax.parameterizations import as_denoiser, error_ratio, operators
from dgm_jax.training import Checkpoints
from experiments import train_images

KEY = jax.random.key(0)
checks = settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
few = settings(checks, max_examples=12)

reals = st.one_of(st.floats(-2, 2), st.sampled_from([0.0, 1.0, -1.0, 1e-9, 1e9, math.inf, math.nan]))
positive = st.floats(1e-3, 100.0)
counts = st.integers(-1, 6)
shapes = st.lists(st.integers(0, 4), min_size=0, max_size=3).map(tuple)
batch_shapes = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
floats = st.sampled_from([jnp.float32, jnp.float16, jnp.bfloat16])
predictions = st.sampled_from(["x_0", "noise", "score", "v", "velocity"])


def ours(function, *args, **kwargs):
    """What the function returns, or `None` where it refuses in our words."""
    try:
        return function(*args, **kwargs)
    except (ValueError, TypeError, SystemExit) as error:
        if not str(error).startswith("Expected"):
            raise
        return None


def process_of(draw):
    """A process that is right, mostly."""
    kind = draw(st.sampled_from(["vp", "sub", "ve", "karras", "cosine", "rectified", "betas"]))
    number = st.one_of(positive, reals)
    match kind:
        case "vp":
            return ours(processes.variance_preserving, draw(number), draw(number))
        case "sub":
            return ours(processes.sub_variance_preserving, draw(number), draw(number))
        case "ve":
            return ours(processes.variance_exploding, draw(number), draw(number))
        case "karras":
            return ours(processes.karras, draw(number), draw(number), draw(number))
        case "cosine":
            return ours(processes.cosine, draw(number))
        case "rectified":
            return processes.rectified()
    betas = np.array(draw(st.lists(st.one_of(st.floats(1e-4, 0.5), reals), max_size=5)), np.float32)
    return ours(processes.from_betas, betas)


@checks
@given(st.data())
def test_processes(data):
    """Levels are finite on [0, 1], and noise grows over signal."""
    process = process_of(data.draw)
    if process is None:
        return
    t = jnp.linspace(0.0, 1.0, 9)
    alpha, sigma = process.alpha(t), process.sigma(t)
    assert np.isfinite(alpha).all()
    assert np.isfinite(sigma).all()
    assert (np.diff(np.arctan2(sigma, alpha)) >= -1e-6).all()
    x = process.perturb(jnp.ones((9, 2)), t, jnp.ones((9, 2)))
    np.testing.assert_allclose(x[:, 0], alpha + sigma, rtol=1e-5)


@checks
@given(st.data())
def test_grids(data):
    """n + 1 falling points with both ends exact."""
    draw = data.draw
    process = process_of(draw)
    n, t_min, t_max = draw(counts), draw(st.one_of(st.floats(0, 1), reals)), draw(st.one_of(st.just(1.0), reals))
    made = [ours(processes.uniform, n, t_min=t_min, t_max=t_max)]
    if process is not None:
        made.append(ours(processes.karras_grid, process, n, t_min=t_min, t_max=t_max, rho=draw(positive)))
        made.append(ours(processes.log_snr_grid, process, n, t_min=t_min, t_max=t_max))
    for grid in made:
        if grid is not None:
            assert grid.shape == (n + 1,)
            assert np.isfinite(grid).all()
            assert (np.diff(grid) <= 0).all()
            np.testing.assert_array_equal([grid[0], grid[-1]], np.array([t_max, t_min], grid.dtype))


@few
@given(st.data())
def test_training_times(data):
    draw = data.draw
    process, low, high = process_of(draw), draw(reals), draw(st.one_of(st.just(1.0), reals))
    laws = [ours(processes.stratified, low, high)]
    if process is not None:
        laws.append(ours(processes.log_normal, process, draw(reals), draw(st.one_of(positive, reals))))
        laws.append(ours(processes.log_snr_uniform, process, low, high))
    for law in laws:
        if law is not None:
            t = ours(law, KEY, 5)
            assert t is None or (np.isfinite(t).all() and (t >= 0).all() and (t <= 1).all())


@checks
@given(st.data())
def test_losses_and_samplers(data):
    """Shapes of any rank with sizes from 0, three dtypes, five predictions; nothing is computed."""
    draw = data.draw
    process = draw(st.sampled_from([processes.variance_preserving(), processes.karras(), processes.rectified()]))
    prediction, shape, dtype = draw(predictions), draw(batch_shapes), draw(floats)
    denoise = ours(as_denoiser, lambda x_t, t: x_t, process, prediction=prediction)
    x_0 = jnp.zeros(shape, dtype)
    weight = lambda t: error_ratio(process, t, prediction)  # noqa: E731
    loss = ours(jax.eval_shape, lambda x: diffusion_loss(denoise, process, x, KEY, weight=weight), x_0)
    assert loss is None or loss.shape == shape[:1]
    ts = draw(
        st.one_of(
            st.just(processes.uniform(3, t_min=1e-3, t_max=0.99)),
            st.lists(reals, max_size=4).map(lambda values: np.array(values, np.float32)),
        )
    )
    coordinates = draw(st.sampled_from(["time", "noise", "data"]))
    for sample in (samplers.sample_ode, samplers.sample_sde):
        drawn = ours(
            jax.eval_shape,
            lambda key, sample=sample: sample(denoise, process, key, shape, ts=ts, coordinates=coordinates).x,
            KEY,
        )
        assert drawn is None or drawn.shape == shape
    for recipe in (samplers.ddim, samplers.dpm_solver_pp_2m, samplers.edm_heun):
        drawn = ours(jax.eval_shape, lambda key, recipe=recipe: recipe(denoise, process, key, shape, ts=ts).x, KEY)
        assert drawn is None or drawn.shape == shape


@checks
@given(st.data())
def test_networks(data):
    """U-Nets of any sizes on images of any sizes."""
    draw = data.draw
    shape = (*draw(st.sampled_from([(1,), (2,)])), draw(st.integers(0, 12)), draw(st.integers(0, 12)), 2)
    multipliers = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    attention = tuple(draw(st.lists(st.integers(1, 12), max_size=1)))
    sizes = (draw(st.integers(0, 12)), multipliers, draw(st.integers(0, 2)), attention)
    nets = [
        networks.UNet(*sizes, groups=draw(st.integers(0, 4)), patch=draw(st.integers(0, 2))),
        networks.ScoreUNet(*sizes, ncsnpp=draw(st.booleans()), remat=draw(st.booleans())),
    ]
    x, dtype = jnp.zeros(shape, draw(floats)), draw(floats)
    for net in nets:
        made = ours(
            jax.eval_shape,
            lambda k, x, net=net: net.clone(dtype=dtype).init_with_output(k, x, jnp.zeros(shape[0], x.dtype)),
            KEY,
            x,
        )
        if made is not None:
            out, params = made
            assert (out.shape, out.dtype) == (x.shape, x.dtype)
            assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@checks
@given(st.data())
def test_measurements(data):
    """The adjoint's inner products are those of the operator, wherever one can be made."""
    draw = data.draw
    event = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
    rng = np.random.default_rng(0)
    kind = draw(st.sampled_from(["mask", "blur", "downsample", "grayscale", "matrix"]))
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple))
    match kind:
        case "mask":
            operator = ours(operators.mask, rng.random(sizes) < 0.5)
        case "blur":
            operator = ours(operators.blur, rng.random(sizes).astype(np.float32))
        case "downsample":
            operator = ours(operators.downsample, draw(st.one_of(counts, st.just(sizes))))
        case "grayscale":
            operator = ours(operators.grayscale, np.array(draw(st.lists(reals, max_size=3)), np.float32))
        case "matrix":
            operator = ours(operators.matrix, rng.normal(size=(draw(st.integers(0, 3)), *event)).astype(np.float32))
    if operator is None:
        return
    x = jnp.asarray(rng.normal(size=(2, *event)), jnp.float32)
    y = ours(operator.apply, x)
    if y is not None:
        other = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
        back = operator.adjoint(other)
        assert back.shape == x.shape
        np.testing.assert_allclose((y * other).sum(), (x * back).sum(), rtol=1e-3, atol=1e-3)


@few
@given(st.integers(1, 20), st.integers(-1, 21), st.integers(-1, 3), st.integers(0, 4), st.integers(-1, 2**33))
def test_batches(examples, size, index, count, seed):
    source = from_array(np.arange(examples, dtype=np.float32)[:, None])
    stream = ours(batches, source, size, seed=seed, shard_index=index, shard_count=count, prefetch=0)
    if stream is not None:
        assert next(stream)["image"].shape == (size, 1)


leaf = st.tuples(st.sampled_from(["float32", "float16", "bfloat16", "int8", "int32", "uint8", "bool", "key"]), shapes)
trees = st.recursive(
    leaf, lambda inner: st.dictionaries(st.text("ab/.-é ", max_size=3), inner, max_size=3) | st.lists(inner, max_size=2)
)


@few
@given(trees)
def test_checkpoints_return_what_they_were_given(drawn):
    """Trees of any shape, with names of any characters, empty arrays and keys."""

    def made(of):
        name, shape = of
        if name == "key":
            return jax.random.split(KEY, (math.prod(shape) or 1,))
        values = np.random.default_rng(0).integers(0, 2, shape)
        return jnp.asarray(values).astype(name)

    tree = jax.tree.map(made, drawn, is_leaf=lambda node: isinstance(node, tuple))
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:

        def there_and_back():
            checkpoints.save(1, tree)
            return checkpoints.restore(like=tree)

        restored = ours(there_and_back)
    if restored is None:
        return
    assert jax.tree.structure(restored[0]) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(restored[0]), jax.tree.leaves(tree), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.size:
            same = one == other
            assert np.asarray(same).all()


@few
@given(st.lists(st.integers(0, 255), min_size=1, max_size=8), st.integers(-1, 300))
def test_images_there_and_back(values, levels):
    image = np.array(values, np.uint8)
    unit = ours(to_unit, image, levels=levels)
    if unit is not None:
        assert (np.abs(unit) <= 1).all()
        np.testing.assert_array_equal(from_unit(unit, levels=levels), image)


@checks
@given(st.data())
def test_settings_of_the_pod_script(data):
    """Any network, process, size, class count and dtype: the loss has a gradient, or the setting is refused."""
    draw = data.draw
    config = replace(
        train_images.Config(),
        dataset=draw(st.sampled_from(["digits", "mnist5k"])),
        network=draw(st.sampled_from(["smallest", "unet_8x8", "unet_28x28", "ncsn++", "edm-ddpm++"])),
        process=draw(st.sampled_from(["ddpm", "vp", "sub-vp", "ve", "edm"])),
        classes=draw(st.integers(0, 3)),
        dropout=draw(st.sampled_from([0.0, 0.1])),
        dropped=draw(reals),
        flip=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        remat=draw(st.booleans()),
    )
    side = draw(st.sampled_from([7, 8, 12, 16]))
    model = ours(train_images.model_of, config, (side, side, 1))
    if model is None:
        return
    batch = {"image": jnp.zeros((2, side, side, 1), jnp.uint8), "label": jnp.zeros(2, jnp.int32)}

    def gradient(key):
        labels = (batch["label"],) if config.classes else ()
        params = model.network.init(key, jnp.zeros((2, side, side, 1)), jnp.zeros(2), *labels)
        loss_fn = model.loss(dropped=config.dropped, flip=config.flip)
        return params, jax.grad(loss_fn)(params, batch, jax.random.split(key, 2))

    made = ours(jax.eval_shape, gradient, KEY)
    if made is not None:
        params, gradients = made
        assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, gradients)


def test_archives_need_no_pickle():
    """No file of the library or of the experiments unpickles: `pickle` is not imported, nor asked of NumPy."""
    import ast
    from pathlib import Path

    root = Path(__file__).parents[1]
    of_torch = root / "dgm_jax/data/torch_files.py"  # unpickles tensors alone: see its tests
    for path in {*root.glob("dgm_jax/**/*.py"), *root.glob("experiments/**/*.py")} - {of_torch}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "cloudpickle", "dill", "joblib"}, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path

"""One table for all families: GANs, VAEs, diffusion and flows at equal parameters and equal training compute.

    python -m experiments.family_comparison              # about 35 minutes on 2 CPU cores
    python -m experiments.family_comparison --write      # and copy tables and pictures to docs/
    python -m experiments.family_comparison --smoke      # the same code on tiny sizes, in half a minute

Six networks of one kind, multilayer perceptrons, on 25 Gaussians in the plane and on 28 x 28 digits: non-saturating
GAN with R1 (arXiv:1801.04406), WGAN-GP (arXiv:1704.00028), VAE (arXiv:1312.6114), IWAE (arXiv:1509.00519), diffusion
(arXiv:2011.13456; drawn from by the reverse SDE, by the ODE, and by DDIM, arXiv:2010.02502, with 10 evaluations) and
rectified flow (arXiv:2209.03003). The network that generates has as many parameters in each, and each training takes as
many floating-point operations. It writes families_grid.md, families_digits.md, both as .csv, families.png and
families_samples.png to runs/family_comparison/. Running it again resumes: a network or a cell that is there is not
computed again. The page docs/families.md says what is measured and how.

Expected, mean +- standard deviation over 3 seeds; of real data with points held out, the noise floor:

                     grid: C2ST         high quality     digits: C2ST       Frechet distance
    GAN, R1          0.854 +- 0.026     0.24 +- 0.03     0.697 +- 0.017     36 +- 2
    WGAN-GP          0.913 +- 0.022     0.09 +- 0.03     0.730 +- 0.014     41 +- 3
    VAE              0.813 +- 0.002     0.27 +- 0.02     0.901 +- 0.015     164 +- 6
    IWAE             0.908 +- 0.012     0.06 +- 0.02     0.913 +- 0.017     189 +- 10
    VP, SDE          0.736 +- 0.080     0.47 +- 0.16     0.747 +- 0.003     91 +- 8
    VP, ODE          0.730 +- 0.086     0.46 +- 0.17     0.770 +- 0.022     96 +- 3
    VP, DDIM         0.783 +- 0.060     0.38 +- 0.14     0.856 +- 0.012     158 +- 2
    rectified flow   0.615 +- 0.009     0.83 +- 0.02     0.823 +- 0.010     137 +- 8
    real data        0.503 +- 0.009     0.99 +- 0.00     0.515 +- 0.020     5 +- 1
"""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from experiments._family_cells import Comparison, Plan, drawn_file
from experiments._family_data import DATA
from experiments._family_networks import NETWORKS, Sizes
from experiments._family_samplers import SAMPLERS, Effort
from experiments._family_table import REAL, UNITS, into_page, summaries, table, write_csv
from experiments._run import Run, begin, parse

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Config:
    """Six networks with ten samplers on two data sets, scored by the same metrics."""

    data: tuple[str, ...] = ("grid", "digits")  # computed now; what the run already has is shown too
    networks: tuple[str, ...] = NETWORKS
    seeds: int = 3
    grid: Sizes = field(
        default_factory=lambda: Sizes(
            parameters=50_000, latent=2, batch=256, vae_rate=3e-3, gan_rate=2e-3, r1=0.1, penalty=0.1, critic_steps=3
        )
    )
    digits: Sizes = field(
        default_factory=lambda: Sizes(parameters=600_000, residual=0.1, decoder_std=0.5, gan_rate=1e-3, critic_steps=3)
    )
    grid_flops: float = 5e11  # of the training of one network
    digits_flops: float = 3e12
    grid_points: int = 2000  # drawn by each sampler, and held out
    digits_points: int = 500
    permutations: int = 999
    feature_steps: int = 900  # of the classifier whose features score digits
    grid_effort: Effort = field(default_factory=lambda: Effort(coding_steps=48, coded=500, stds=(0.02, 0.05, 0.1, 0.2)))
    digits_effort: Effort = field(default_factory=Effort)
    seed: int = 0
    write: bool = False  # copy tables and pictures to docs/
    run_dir: str = "runs/family_comparison"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


LITTLE = Effort(
    sde_steps=2,
    ode_steps=2,
    ddim_steps=2,
    coding_steps=2,
    samples=3,
    coded=8,
    latents=20,
    annealed=2,
    chains=2,
    temperatures=3,
    leapfrog_steps=1,
    pilots=1,
    stds=(0.5, 1.0),
)
SMOKE = Config(
    networks=("WGAN-GP", "VAE", "VP"),
    seeds=2,
    grid=Sizes(parameters=500, layers=1, latent=2, batch=16, gan_batch=8, critic_steps=1, samples=2),
    digits=Sizes(parameters=8000, layers=1, latent=2, batch=8, gan_batch=8, critic_steps=1, samples=2),
    grid_flops=2e7,
    digits_flops=3e7,
    grid_points=60,
    digits_points=60,
    permutations=9,
    feature_steps=5,
    grid_effort=LITTLE,
    digits_effort=LITTLE,
    run_dir="runs/family_comparison-smoke",
    smoke=True,
)


def drawn_by(name: str, config: Config, run: Run) -> dict[str, np.ndarray]:
    """What the samplers drew with the first seed, and real data."""
    files = {sampler: drawn_file(run, name, sampler) for names in SAMPLERS.values() for sampler in names}
    found = {sampler: np.load(path) for sampler, path in files.items() if path.exists()}
    return {**found, REAL: DATA[name](getattr(config, f"{name}_points")).reference}


def plan(config: Config, name: str) -> Plan:
    """What the configuration asks for on one data set."""
    own = {part: getattr(config, f"{name}_{part}") for part in ("points", "effort")}
    shared = {part: getattr(config, part) for part in ("networks", "seeds", "permutations", "feature_steps", "seed")}
    return Plan(sizes=getattr(config, name), budget=getattr(config, f"{name}_flops"), **own, **shared)


def main(config: Config) -> None:
    """Compute what is missing, then show all."""
    from experiments._family_figures import dots, samples

    # which data are computed now, and what is copied, changes nothing in the cells
    run = begin(replace(config, data=tuple(DATA), write=False), devices=1)
    for name in config.data:
        comparison = Comparison(name, plan(config, name), run)
        comparison.train()
        comparison.compute()
    records = {name: [record for record in run.records() if record["data"] == name] for name in DATA}
    records = {name: mine for name, mine in records.items() if mine}
    results = {name: summaries(mine) for name, mine in records.items()}
    for name, mine in records.items():
        text = table(results[name], UNITS[name])
        (run.directory / f"families_{name}.md").write_text(text)
        if config.write:
            into_page(DOCS / "families.md", name, text)
        write_csv(mine, run.directory / f"families_{name}.csv")
    dots(records, run.directory / "families.png")
    samples({name: drawn_by(name, config, run) for name in records}, run.directory / "families_samples.png")
    run.finish(results)
    if config.write:
        for path in (*run.directory.glob("families*.png"), *run.directory.glob("families*.csv")):
            shutil.copyfile(path, (DOCS / "images" if path.suffix == ".png" else DOCS) / path.name)
    print(f"Look at {run.directory}/families.png, families_samples.png and families_*.md")


if __name__ == "__main__":
    main(parse(Config(), SMOKE))

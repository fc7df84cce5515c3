"""Training configurations of the papers, as `train_images <name>`: what each states, and where this library differs.

    ddpm           Ho et al. 2020, arXiv:2006.11239, appendix B; CIFAR-10
    ddpm++-vp      Song et al. 2021, arXiv:2011.13456, DDPM++ cont. (VP); 4 blocks
    ddpm++-sub-vp  the same under the sub-VP SDE
    ncsn++-ve      the same, NCSN++ cont. (VE); EMA 0.999
    edm-vp         Karras et al. 2022, arXiv:2206.00364, table 7, configuration F, DDPM++; 200 million images
    edm-ve         the same, NCSN++
    edm-class      edm-vp with classes, of which a tenth is dropped, for classifier-free guidance

EDM's augmentation is not here, images are mirrored only, and the average begins by `ema_warmup` in place of its ramp.
Losses are means over pixels. Score SDE's code sums half of them for NCSN++ cont. (VE), 1,536 times the mean, so there
its clip of 1 is in force far more often; to Adam the factor itself is nothing.
"""

from dataclasses import replace
from typing import Any

# of train_images.Config
CIFAR10 = {"dataset": "cifar10", "flip": True, "dropout": 0.1, "batch": 128, "learning_rate": 2e-4, "warmup": 5000}
SONG = {**CIFAR10, "network": "ddpm++", "process": "vp", "steps": 1_300_000, "ema_decay": 0.9999}
EDM = {
    **CIFAR10,
    "network": "edm-ddpm++",
    "process": "edm",
    "dropout": 0.13,
    "batch": 512,
    "learning_rate": 1e-3,
    "warmup": 19_531,  # 10 million images
    "steps": 390_625,  # 200 million images
    "clip": float("inf"),
    "ema_decay": 0.99929,  # half in 0.5 million images
}
PAPERS: dict[str, dict[str, Any]] = {
    "ddpm": {**CIFAR10, "network": "ddpm", "process": "ddpm", "steps": 800_000, "ema_decay": 0.9999},
    "ddpm++-vp": SONG,
    "ddpm++-sub-vp": {**SONG, "process": "sub-vp"},
    "ncsn++-ve": {**SONG, "network": "ncsn++", "process": "ve", "ema_decay": 0.999},
    "edm-vp": EDM,
    "edm-ve": {**EDM, "network": "edm-ncsn++"},
    "edm-class": {**EDM, "classes": 10, "dropped": 0.1},
}


def of_paper(name: str, default: Any) -> Any:
    """The configuration of that name, on top of `default`."""
    if name not in PAPERS:
        raise SystemExit(f"Expected one of {', '.join(PAPERS)}, or options alone; got {name!r}.")
    accelerator = {"evaluate_every": 10_000, "save_every": 5_000, "log_every": 100, "dtype": "bfloat16"}
    return replace(default, **accelerator, **PAPERS[name], run_dir=f"runs/{name}")

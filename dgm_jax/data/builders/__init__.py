"""tensorflow-datasets builders for data that Python packages ship, so that it is there without a network."""

import numpy as np


def stratified_split(labels: np.ndarray, test_per_class: int) -> dict[str, np.ndarray]:
    """Indices of "train" and "test": of each class, `test_per_class` evenly spaced examples are held out.

    No random numbers are drawn, so the split is the same with every version of every library.
    """
    test = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if not 0 < test_per_class < len(members):
            raise ValueError(
                f"Expected 0 < test_per_class < {len(members)}, as both splits hold examples of class {label}; "
                f"got {test_per_class=}."
            )
        test.append(members[np.arange(test_per_class) * len(members) // test_per_class])
    held_out = np.sort(np.concatenate(test))
    return {"train": np.setdiff1d(np.arange(len(labels)), held_out), "test": held_out}

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---


# %% [markdown]
# # What the director sees
#
# Notebook 02 shows what one update gives away, notebook 03 what heuristics leave of that: an attacker who knows them
# finds it. What no heuristic does, never showing the update does. Here a real director and four real sites (processes,
# mutual TLS) make two rounds of secure sums; then we sit down at the director's side and look at all that it has.
#
# Each site holds **one** image and takes one plain step, so an update in the clear is as easy to attack as can be. All
# four sites are ours: that is the only reason why the truth can be drawn beside what arrived.
#
# What follows is a statistical smoke test and a few attacks. **It is no proof**, and the protocol is our own code,
# which nobody outside has reviewed.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from fedveil.gradient_leakage.server_view import correlation, smoke_test
from fedveil.workspace.secagg_run import SITES, run_federation
from fedveil.workspace.secagg_view import planted_reuse, scalar_masked, view_of_own

folder = tempfile.TemporaryDirectory(prefix="fedveil-")
own = run_federation(Path(folder.name))
first, second = own.training_sums
print(f"images: {own.images_are}; {first.body_words:,} numbers in an update")

# %% [markdown]
# ## What came
#
# Two keys, sealed shares, a masked vector, a consent, one share of each: per site and round, in bytes. The masked
# vector is four bytes a number; everything else does not grow with the model.

# %%
for stage in dict.fromkeys(one.stage for one in first.said if one.way == "up"):
    sizes = {one.envoy: one.size for one in first.said if (one.way, one.stage) == ("up", stage)}
    print(f"{stage:10s}", "  ".join(f"{sizes[site]:9,}" if site in sizes else " " * 9 for site in SITES))
print(f"{'vector':10s}", "  ".join(f"{first.vectors[site].nbytes:9,}" for site in SITES))

# %% [markdown]
# ## What was masked, and what arrived
#
# The update as rows of grey, and the same numbers as they reached the director. The third line is the most that it can
# make of them: the shares that the sites reveal open each site's *own* mask, never those of pairs.

# %%
side = int(first.body_words**0.5)


def rows_of(values):
    return np.asarray(values[: side * side], np.float64).reshape(side, side)


figure, axes = plt.subplots(3, len(SITES), figsize=(2.2 * len(SITES), 7))
for column, site in enumerate(SITES):
    update = own.truths[0][site]
    bound = np.quantile(np.abs(update), 0.97)
    lines = (
        (rows_of(update), -bound, bound, f"{site}: the update"),
        (rows_of(first.bodies[site] >> np.uint32(24)), 0, 255, "as it arrived"),
        (rows_of(first.without_own[site] >> np.uint32(24)), 0, 255, "less its own mask"),
    )
    for axis, (values, low, high, title) in zip(axes[:, column], lines, strict=True):
        axis.imshow(values, cmap="gray", vmin=low, vmax=high)
        axis.set_title(title, fontsize=8)
        axis.set_axis_off()
plt.show()

for site in SITES:
    print(f"{site}: correlation with the update {correlation(first.bodies[site], own.truths[0][site]):+.4f}")
total = sum(first.without_own.values()).astype(np.uint32)
print(f"the sum of all four: correlation {correlation(total, sum(own.truths[0].values())):+.6f}")

# %% [markdown]
# The sum of all four is the sum of the updates: that is what a director is meant to have.
#
# ## A test that has teeth
#
# A test that finds nothing says something only if it would find something. So it also gets the same updates under two
# broken schemes: one number added to everything, which OpenFL 1.9 calls secure aggregation, and our own masks used a
# second time.

# %%
tests = {
    "as it arrived": smoke_test([first.bodies, second.bodies], own.truths),
    "less own masks": smoke_test([first.without_own, second.without_own], own.truths),
    "one number as mask": smoke_test(scalar_masked(own), own.truths),
    "masks used again": smoke_test(planted_reuse(own), own.truths),
}
for name, test in tests.items():
    kinds = ", ".join(sorted({look.kind for look in test.findings})) or "nothing"
    print(f"{name:20s} {len(test.findings):3d} of {len(test.looks)} looks found something: {kinds}")
assert not tests["as it arrived"].findings
assert not tests["less own masks"].findings
assert tests["one number as mask"].findings
assert tests["masks used again"].findings

figure, axis = plt.subplots(figsize=(7, 3))
for name, test in tests.items():
    least = np.sort([max(look.p_value, 1e-30) for look in test.looks])
    axis.plot(np.arange(1, len(least) + 1) / len(least), least, label=name)
axis.plot([0, 1], [1e-30, 1], alpha=0)
axis.set_yscale("log")
axis.set_xlabel("share of all looks")
axis.set_ylabel("p-value")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# What it does **not** find is in the docstring of `gradient_leakage/server_view.py`: masks from a seed of 32 bits would
# pass, and so would masks whose keys the director knows. Statistics cannot say that masks are good; they can say that
# they are bad.
#
# ## The attacks of the benchmark
#
# Gradient matching by an attacker who knows labels, plan, model, learning rate and scheme.

# %%
view = view_of_own(own)
names = [
    "undefended",
    "scalar mask",
    "masked, as it arrived",
    "masked, less the sites' own masks",
    "the sum of all four",
]
found = {one.name: one for one in view.attacks}
figure, axes = plt.subplots(len(SITES), 1 + len(names), figsize=(2 * (1 + len(names)), 2.2 * len(SITES)))
for row, site in enumerate(SITES):
    columns = [("original", own.images[site].images[0], None)]
    for name in names:
        scores, at = (found[name].scores[0], row) if len(found[name].scores) == 1 else (found[name].scores[row], 0)
        columns.append((name, scores.images[at], scores.psnr[at]))
    for axis, (name, image, psnr) in zip(axes[row], columns, strict=True):
        axis.imshow(np.clip(image.permute(1, 2, 0).float().numpy(), 0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(name if psnr is None else f"{name}\n{psnr:.0f} dB", fontsize=7)
        axis.set_axis_off()
plt.show()
for one in view.attacks:
    null = "" if one.null_psnr is None else f", null {one.null_psnr:5.1f} dB"
    print(f"{one.name:36s} {one.psnr:6.1f} dB{null}")
folder.cleanup()

# %% [markdown]
# A masked vector is worth exactly its null: what the attack finds in it, it would find in anybody's. The scalar mask is
# worth nothing.
#
# And the last column is the warning. The *sum* is what the director is meant to have, and a sum over four images is not
# much of a crowd: something of them can be seen in it. Secure aggregation hides single updates and says nothing about
# the sum; what bounds that is calibrated noise, with an epsilon beside it. `fedveil secagg view` writes all of this as
# one page, from this federation or from a director's own `sums/RUN`.

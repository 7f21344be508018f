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
# # What a gradient gives away
#
# A site sends no image, only a gradient or an update of the model. This notebook plays the director that receives it,
# and looks at what is in there: on real chest X-rays, with the attacks of `gradient_leakage/`.
#
# **How to read the numbers.** Chest X-rays look alike: another patient's image already scores 15 to 20 dB. So a PSNR
# alone means little; it stands beside its **null**, what the same attack scores when it was given *another* patient's
# update. A few images per cell show that something is possible. They are no evidence that something is safe.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from fedveil.gradient_leakage.attacks.catalogue import listed
from fedveil.gradient_leakage.cases import draw_targets, split
from fedveil.gradient_leakage.defenses.bottlenecks import with_bottleneck
from fedveil.gradient_leakage.metrics import Truth, baseline, null_scores, score
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import Knowledge, LocalTraining
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.workspace.leakage_data import available_cases, load_pool

torch.set_num_threads(1)
ONE_GRADIENT = SiteTraining()
CASE = available_cases()[0]
public, targets = split(load_pool(CASE))
print(f"{CASE}: {len(targets)} images that may be attacked, {len(public)} public ones, no patient in both")


# %%
def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def attack_each(name, model_name, batch=1, count=2, site=ONE_GRADIENT, knowledge=None, dtype=torch.float32, **options):
    """Attack some batches; returns the scores of each, and the truths."""
    attack = listed(name).make(**options)
    knowledge = attack.needs if knowledge is None else knowledge
    scores, truths, found = [], [], []
    for seed, target in enumerate(draw_targets(targets, batch, count)):
        images, labels = target.images.to(dtype) / (255 if target.images.dtype is torch.uint8 else 1), target.labels
        model = build(model_name, target.domain, seed).to(dtype)
        if knowledge.malicious:
            model = attack.prepare(model, target.domain, seeded(seed))
        sent = observe(model, images, labels, site, seeded(seed), target.domain.num_classes).limited_to(knowledge)
        found.append(attack(sent, knowledge, seeded(seed)))
        truths.append(Truth(images, labels, target.patients))
        scores.append(score(found[-1], truths[-1]))
    return scores, truths, found


def show(scores, truths, title, most=12):
    """Originals above what was found of them."""
    originals = torch.cat([truth.images for truth in truths])[:most]
    pictures = torch.cat([scored.images for scored in scores])
    psnr = np.concatenate([scored.psnr for scored in scores])
    null = np.concatenate([n.psnr for n in null_scores(scores, truths, np.random.default_rng(0))])
    figure, axes = plt.subplots(2, len(originals), figsize=(1.5 * len(originals), 3.4), squeeze=False)
    for column, (above, below) in enumerate(zip(originals, pictures[:most], strict=True)):
        for axis, image in zip(axes[:, column], (above, below), strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
        axes[1, column].set_title(f"{psnr[column]:.0f} dB\nnull {null[column]:.0f}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    plt.show()


# %% [markdown]
# ## One gradient of one image
#
# The site computes one gradient on one X-ray and sends it, as 42,000 float32 numbers. DLG (Zhu et al. 2019) starts with
# noise and moves it until it has the same gradient. Nobody tells it the label.

# %%
scores, truths, found = attack_each("dlg", "tanh-cnn", count=4)
show(scores, truths, "DLG, one gradient, label unknown")
print("labels found:", [bool(f.labels.eq(t.labels).all()) for f, t in zip(found, truths, strict=True)])

# %% [markdown]
# The label was in the gradient, too. With ReLU the gradient is not smooth and L-BFGS gets stuck. The cosine of the
# gradients with a prior on smooth images (Inverting Gradients, Geiping et al. 2020) still gets there.

# %%
scores, truths, _ = attack_each("inverting-gradients", "relu-cnn", count=2, knowledge=Knowledge(labels=True))
show(scores, truths, "Inverting Gradients, ReLU network")

# %% [markdown]
# ## A batch is no protection by itself
#
# With a fully connected first layer and ReLU the gradient of a whole batch can be taken apart exactly (SPEAR, Dimitrov
# et al. 2024). Here in float64, as in the paper.

# %%
scores, truths, _ = attack_each("spear", "mlp", batch=6, count=2, dtype=torch.float64)
show(scores, truths, "SPEAR, batches of six")

# %% [markdown]
# ## A director that cheats
#
# A malicious director publishes a model with an imprint (Robbing the Fed, Fowl et al. 2022). Each image of the batch
# then lies in the difference of two neighbouring rows; no optimisation is needed.

# %%
scores, truths, _ = attack_each("imprint", "relu-cnn", batch=8, count=2)
show(scores, truths, "imprint, a batch of eight", most=8)

# %% [markdown]
# ## What makes it harder
#
# Larger batches and more local steps. That is true of *these* attacks; the exact ones above did not mind the batch.

# %%
HONEST = Knowledge(labels=True, local_steps=True, learning_rate=True)
cells = {
    "one image": {},
    "batch of 4": {"batch": 4},
    "8 local steps, taken for one gradient": {"site": SiteTraining(LocalTraining(8, 1), 0.1)},
}
for name, cell in cells.items():
    scores, truths, _ = attack_each("inverting-gradients", "relu-cnn", knowledge=HONEST, iterations=300, **cell)
    psnr = np.concatenate([s.psnr for s in scores]).mean()
    null = np.nanmean(np.concatenate([n.psnr for n in null_scores(scores, truths, np.random.default_rng(0))]))
    mean = np.concatenate([baseline(public.images[:500].float() / 255, t).psnr for t in truths]).mean()
    print(f"{name:40s} {psnr:5.1f} dB   null {null:5.1f} dB   the public mean image {mean:5.1f} dB")

# %% [markdown]
# ## A defense, and its attacker
#
# PRECODE (Scheliga et al. 2022) puts a random bottleneck before the last layer. Against an attacker who ignores it, it
# looks perfect. But its own layers give its noise away: at batch 1 the quotients of their gradients are the features,
# the code and so the noise. With the noise known, DLG works as before.


# %%
def bottlenecked(name, knowledge, **options):
    attack, scores, truths = listed(name).make(**options), [], []
    for seed, target in enumerate(draw_targets(targets, 1, 2)):
        images = target.images.float() / (255 if target.images.dtype is torch.uint8 else 1)
        model = with_bottleneck(build("tanh-cnn", target.domain, seed), seed=seed)
        sent = observe(model, images, target.labels, SiteTraining(), seeded(seed), target.domain.num_classes)
        found = attack(sent.limited_to(knowledge), knowledge, seeded(seed))
        truths.append(Truth(images, target.labels, target.patients))
        scores.append(score(found, truths[-1]))
    return scores, truths


show(
    *bottlenecked("dlg", Knowledge(labels=True), iterations=100, restarts=1),
    "PRECODE, attacked as if it were not there",
)
show(*bottlenecked("precode-break", Knowledge()), "PRECODE, attacked by someone who knows it")

# %% [markdown]
# ## What follows
#
# - No heuristic here survives an attacker who knows it, and compression is no privacy.
# - What holds is not to show single updates at all (secure aggregation), and noise that is calibrated in an honest unit
#   (differential privacy). Both are still to come in this project; **today the director of a fedveil federation sees
#   each site's update**.
# - `fedveil attack run` does this on your own images and your own model, `fedveil attack bench --suite smoke` on many
#   cells at once, with a report.

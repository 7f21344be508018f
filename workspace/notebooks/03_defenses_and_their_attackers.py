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
# # Defenses and their attackers
#
# A defense is judged by an attacker who knows it: its layers, its code, its mask, the size of its noise. One who does
# not know it proves nothing. This notebook shows both, side by side, on real chest X-rays: the director reads what
# each defense lets through, and attacks that.
#
# Two images a defense show what is *possible*. They are no evidence that something is safe; `fedveil attack bench
# --defenses all --suite claim` is the test behind such words.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from fedveil.gradient_leakage.attacks.catalogue import listed
from fedveil.gradient_leakage.cases import draw_targets, split
from fedveil.gradient_leakage.defenses.chain import Chain
from fedveil.gradient_leakage.defenses.coded import Coded
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.gradient_leakage.defenses.registry import DEFENSES
from fedveil.gradient_leakage.defenses.top_k import TopK
from fedveil.gradient_leakage.metrics import null_scores, score
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import Knowledge
from fedveil.gradient_leakage.vae.fitting import fit
from fedveil.gradient_leakage.victim import SiteTraining, layout_of, observe, sent_through
from fedveil.workspace.leakage_data import available_cases, load_pool

torch.set_num_threads(1)
CASE = available_cases()[0]
public, targets = split(load_pool(CASE))
NAIVE = Knowledge(labels=True)
ADAPTIVE = Knowledge(labels=True, defense=True)
model = build("tanh-cnn", targets.domain, 0)
print(
    f"{CASE}: a network of {layout_of(model).size:,} numbers; one gradient of one image is sent, or what is left of it"
)


# %%
def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gradient_of(network, image, label, seed):
    return observe(network, image, label, SiteTraining(), seeded(seed), targets.domain.num_classes)


def attacked(chain, name, knowledge, network=model, count=2, **options):
    """Send some images' gradients through a chain, attack what is read; scores and truths."""
    attack, scores, truths = listed(name).make(**options), [], []
    for seed, target in enumerate(draw_targets(targets, 1, count)):
        truths.append(target.truth())
        sent = sent_through(
            gradient_of(network, truths[-1].images, target.labels, seed), chain, np.random.default_rng(seed)
        )
        scores.append(score(attack(sent.limited_to(knowledge), knowledge, seeded(seed)), truths[-1]))
    return scores, truths


def beside(title, **lines):
    """Originals, and under them a line for each attacker."""
    originals = [truth.images[0] for truth in next(iter(lines.values()))[1]]
    figure, axes = plt.subplots(
        1, len(originals) * (1 + len(lines)), figsize=(1.7 * len(originals) * (1 + len(lines)), 2.2)
    )
    places = iter(axes)
    for number, original in enumerate(originals):
        columns = [("original", original, None)]
        columns += [
            (name.replace("_", " "), scores[number].images[0], scores[number].psnr[0])
            for name, (scores, _) in lines.items()
        ]
        for name, image, psnr in columns:
            axis = next(places)
            axis.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(name if psnr is None else f"{name}\n{psnr:.0f} dB", fontsize=8)
            axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    plt.show()
    for name, (scores, truths) in lines.items():
        found = np.concatenate([one.psnr for one in scores]).mean()
        null = np.nanmean(np.concatenate([one.psnr for one in null_scores(scores, truths, np.random.default_rng(0))]))
        print(f"{name.replace('_', ' '):28s} {found:5.1f} dB   on another patient's update {null:5.1f} dB")


# %% [markdown]
# ## PRECODE: noise inside the network
#
# A random bottleneck before the last layer (Scheliga et al. 2022). To DLG the update looks like noise. But at one image
# the bottleneck's own gradients are products of what it wants to hide: their quotients are the features, the code and
# the noise. With the noise known, DLG works as before (Balunović et al. 2022).

# %%
bottlenecked = DEFENSES["precode"].on_model(model, 0)
beside(
    "PRECODE",
    ignoring_it=attacked(Chain(), "dlg", NAIVE, bottlenecked, iterations=100, restarts=1),
    knowing_it=attacked(Chain(), "precode-break", ADAPTIVE, bottlenecked),
)

# %% [markdown]
# ## Top-k: send a tenth of the numbers
#
# Ninety of a hundred numbers are zero in what the director reads. An attacker who takes the zeros at their word matches
# nonsense. One who matches the kept numbers alone still has more equations than the image has pixels.

# %%
beside(
    "top-k, 10 %",
    ignoring_it=attacked(Chain((TopK(0.1),)), "dlg", NAIVE, iterations=100, restarts=1),
    knowing_it=attacked(Chain((TopK(0.1),)), "defended-matching", ADAPTIVE),
)

# %% [markdown]
# ## The codec: an encoder is no privacy mechanism
#
# The linear-Gaussian VAE of `gradient_leakage/vae/`, fitted in closed form on gradients of *public* images. It sends a
# hundredth of the numbers. Whoever has the codec (everybody has) encodes the gradient of a candidate image and compares
# codes.

# %%
rng = np.random.default_rng(0)
rows = []
for place in rng.choice(len(public), 250, replace=False):
    shared = public.at([int(place)]).public()
    rows.append(gradient_of(model, shared.images, shared.labels, int(place)).vector())
codec = fit(layout_of(model), np.stack(rows), 100)
print(f"{codec.layout.size:,} numbers become {codec.size}; an image has {targets.domain.pixels} pixels")

coded = Chain((Coded(codec),))
beside(
    "the learned code, without noise",
    decoded=attacked(coded, "inverting-gradients", NAIVE, iterations=250),
    in_code_space=attacked(coded, "defended-matching", ADAPTIVE),
)

# %% [markdown]
# The code is shorter than the image, so nothing is exact here; what comes back is still this patient and no other:
# a learned basis keeps what matters, and even an attacker who only decodes it finds as much. That is why the
# documentation never calls the encoder a protection.
#
# ## The same code with noise
#
# Clip the code to a bound, then add Gaussian noise in proportion to it. This is the one step in this notebook with a
# theorem behind it. A multiplier of 0.02 has none worth its name: its epsilon for one release is over 1000. At 1
# it is about 4.4 (delta 1e-5; the unit is *one site's release*, and rounds add up), and what is found is what would be
# found in anybody's update.

# %%
lengths = [float(np.linalg.norm(codec.encode(row))) for row in rows]
for multiplier in (0.02, 1.0):
    noised = Chain((Coded(codec), GaussianMechanism(float(np.median(lengths)), multiplier)))
    beside(
        f"the learned code, clipped, with noise of {multiplier:g} of the bound",
        in_code_space=attacked(noised, "defended-matching", ADAPTIVE, polish=0),
    )

# %% [markdown]
# ## What follows
#
# - What hides by obscurity (a bottleneck, a mask, a short code) ends where the attacker knows it, and the attacker is
#   whoever wrote the plan.
# - Noise that is calibrated to a clip does hold, and costs accuracy. How much is in the table of
#   `workspace/benchmarks/README.md`: AUC beside leakage, for every registered defense. With three sites, noise of this
#   size on each site's update leaves no model at all: it wants many sites, a secure sum, or noise for each patient
#   inside the training.
# - `fedveil attack bench --defenses all --suite smoke` measures every registered defense; the registry refuses one that
#   nobody attacked with full knowledge of it.

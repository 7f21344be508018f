"""What a malicious director, or a malicious site, tries: each attack is refused, and its site named where it is a site.

The director is played by the honest aggregator's own functions and by messages changed by hand. A site refuses by
``SumRefusedError``; what it promised before is unchanged then, since a step that raises gives no new promises.
"""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from fedveil.utils.errors import BadShareError, MalformedMessageError, SumRefusedError
from fedveil.utils.roster import Roster, RosterEntry
from fedveil.utils.secure_sum import encoding, participant, summation
from fedveil.utils.secure_sum import statements as s
from fedveil.utils.secure_sum.cohort import mask_key_seed
from fedveil.utils.secure_sum.participant import Site
from fedveil.utils.secure_sum.rehearsal import FEDERATION, Step, cast_of, drawn, identity_of, spec_for
from fedveil.utils.secure_sum.rules import Promises, SumFloors
from fedveil.utils.secure_sum.sealing import key_pair, seal
from fedveil.utils.secure_sum.shamir import split
from fedveil.utils.secure_sum.signed import Kind, Signed, signed
from fedveil.utils.secure_sum.terms import Suite, SumTerms
from fedveil.utils.tensors import digest_of

RUN = "rehearsal-1"
SPEC = spec_for((4,), 10)
ANY = SumFloors(suites=tuple(Suite))


class Play:
    """A sum of some sites, driven step by step; ``promises`` and ``states`` are theirs."""

    def __init__(self, names=10, *, cast=None, spec=SPEC, promises=None, seed=b""):
        self.cast = cast or cast_of([f"site-{place:02d}" for place in range(names)], floors=ANY)
        self.spec, self.seed = spec, seed
        self.promises = {n: (promises or {}).get(n, Promises(RUN)) for n in self.cast.names}
        self.states = {}
        self.stage = summation.begin(spec, self.cast.roster)

    def step(self, name, answer, *arguments):
        """One site's step; what it promised is kept, as its journal would."""
        state, said = answer(*arguments)
        self.states[name], self.promises[name] = state, state.promises
        return said

    def advertise(self, name, spec=None):
        site = self.cast.sites[name]
        arguments = (site, spec or self.spec, (), self.promises[name], drawn(self.seed + name.encode()))
        return self.step(name, participant.advertise, *arguments)

    def share(self, name, item):
        random = drawn(b"deal" + self.seed + name.encode())
        return self.step(name, participant.share, self.states[name], item, self.promises[name], random)

    def mask(self, name, item):
        ready = participant.receive(self.states[name], item, self.promises[name])
        self.states[name], self.promises[name] = ready, ready.promises
        parts = participant.stream(ready, np.full(sum(self.spec.sizes), 0.5, np.float32), 10, (), bytes(32))
        vector = np.concatenate([part.copy() for part in parts])
        return self.step(name, participant.announce, ready, digest_of(vector.tobytes()))

    def consent(self, name, item):
        return self.step(name, participant.consent, self.states[name], item, self.promises[name])

    def unmask(self, name, item):
        return self.step(name, participant.unmask, self.states[name], item, self.promises[name])

    def voice(self, name, body):
        """A site's signature under any consent."""
        return s.Voice(name, signed(name, Kind.CONSENT, body, self.cast.sites[name].sign).signature)

    def adverts(self, names=None):
        """All advertise; the items of the closed cohort."""
        for name in names or self.cast.names:
            self.stage = summation.take(self.stage, name, self.advertise(name))
        self.stage, items = summation.close_cohort(self.stage)
        return items

    def deliveries(self, names=None, without=()):
        """As far as the deliveries."""
        for name, item in self.adverts(names).items():
            if name not in without:
                self.stage = summation.take(self.stage, name, self.share(name, item))
        self.stage, items = summation.deliver(self.stage)
        return items

    def surveys(self, names=None, survivors=None):
        """As far as the call of survivors."""
        for name, item in self.deliveries(names).items():
            self.stage = summation.take(self.stage, name, self.mask(name, item))
        self.stage, items = summation.call_survivors(self.stage, survivors or self.stage.announced)
        return items

    def consents(self, names=None, survivors=None):
        """As far as the set of consents."""
        for name, item in self.surveys(names, survivors).items():
            self.stage = summation.take(self.stage, name, self.consent(name, item))
        self.stage, items = summation.reveal(self.stage)
        return items


def call_of(item) -> s.CohortCall:
    return encoding.decode(item)


def survey(play, survivors, **changes):
    """A call of survivors as a director would forge it."""
    said = encoding.read_consent(play.stage.body)
    said = replace(said, survivors=tuple(survivors), **changes)
    return encoding.encode(s.SurvivorsCall(encoding.consent_body(said)))


def rewritten(play, name, item, **changes):
    """The item of a closed cohort with one site's advert replaced by another one that the director made."""
    call = call_of(item)
    place = [one.by for one in call.adverts].index(name)
    advert = replace(encoding.read_advert(call.adverts[place].body), **changes)
    return call, place, encoding.advert_body(advert)


# ------------------------------------------------------------------ keys, cohort, model


def test_a_swapped_key_is_refused():
    play = Play()
    item = play.adverts()["site-00"]
    _, public = key_pair(Suite.X25519, b"d" * 32)
    call, place, body = rewritten(play, "site-01", item, share_key=public)
    for signature in (call.adverts[place].signature, identity_of("director").sign(b"anything")):
        forged = replace(call.adverts[place], body=body, signature=signature)
        adverts = (*call.adverts[:place], forged, *call.adverts[place + 1 :])
        with pytest.raises(SumRefusedError, match="site-01: its advert is not signed"):
            play.share("site-00", encoding.encode(replace(call, adverts=adverts)))


def test_a_site_whose_own_keys_were_replaced_by_older_ones_of_its_own_refuses():
    play = Play()
    older = encoding.decode(play.advertise("site-00"))
    play.seed = b"restarted"
    item = play.adverts()["site-00"]
    call = call_of(item)
    with pytest.raises(SumRefusedError, match="other keys for site-00"):
        play.share("site-00", encoding.encode(replace(call, adverts=(older, *call.adverts[1:]))))


def test_a_sybil_outside_the_roster_is_refused():
    """The director, which may certify anybody, invents a site and puts it into its own roster alone."""
    play = Play()
    sybil = identity_of("sybil", b"director")
    invented = RosterEntry("zz-sybil", "invented", sybil.public_key().public_bytes_raw())
    roster = Roster(FEDERATION, (*play.cast.roster.entries, invented))
    play.stage = summation.begin(spec_for((4,), 11), roster)
    play.spec = play.stage.spec
    director = Site("zz-sybil", sybil.sign, roster, ANY)
    _, advert = participant.advertise(director, play.spec, (), Promises(RUN), drawn(b"sybil"))
    play.stage = summation.take(play.stage, "zz-sybil", advert)
    item = play.adverts()["site-00"]
    with pytest.raises(SumRefusedError, match="zz-sybil is not in the roster"):
        play.share("site-00", item)


def test_a_revoked_member_is_refused_by_every_site_whose_roster_it_left():
    play = Play()
    item = play.adverts()["site-00"]
    left = Roster(FEDERATION, tuple(one for one in play.cast.roster.entries if one.name != "site-05"))
    state = replace(play.states["site-00"], site=replace(play.cast.sites["site-00"], roster=left))
    with pytest.raises(SumRefusedError, match="site-05 is not in the roster"):
        participant.share(state, item, Promises(RUN), drawn(b""))
    with pytest.raises(SumRefusedError, match="not in the roster"):
        participant.advertise(replace(play.cast.sites["site-05"], roster=left), SPEC, (), Promises(RUN), drawn(b""))


@pytest.mark.parametrize(
    "other",
    [
        spec_for((4,), 10, model=b"another model"),
        replace(SPEC, ref=replace(SPEC.ref, plan=digest_of(b"another plan"))),
        replace(SPEC, codec=digest_of(b"another codec")),
        replace(SPEC, layout=digest_of(b"another layout")),
        replace(SPEC, ref=replace(SPEC.ref, round=2)),
        replace(SPEC, contributors=11),
        replace(SPEC, terms=replace(SPEC.terms, bounds=(2.0,))),
        replace(SPEC, federation="other"),
        replace(SPEC, orders="another seed, or protection asked for"),
    ],
    ids=["model", "plan", "codec", "layout", "round", "cohort", "terms", "federation", "orders"],
)
def test_one_site_that_was_given_something_else_is_in_no_sum_with_the_others(other):
    play = Play()
    advert = play.advertise("site-03", other)
    with pytest.raises(SumRefusedError, match="site-03 advertises for another sum"):
        summation.take(play.stage, "site-03", advert)  # an honest aggregator sees it at once
    names = [name for name in play.cast.names if name != "site-03"]
    call = call_of(play.adverts(names)["site-00"])  # a malicious one goes on
    adverts = tuple(sorted((*call.adverts, encoding.decode(advert)), key=lambda one: one.by))
    item = encoding.encode(replace(call, adverts=adverts))
    for name in ("site-00", "site-03"):
        with pytest.raises(SumRefusedError, match="advertises for another sum"):
            play.share(name, item)


@pytest.mark.parametrize("threshold", [1, 2, 5, 6, 11])
def test_a_threshold_too_low_or_beyond_the_cohort_is_refused(threshold):
    play = Play()
    call = call_of(play.adverts()["site-00"])
    with pytest.raises(SumRefusedError, match=f"a threshold of {threshold} for 10"):
        play.share("site-00", encoding.encode(replace(call, threshold=threshold)))


def test_another_threshold_for_one_site_is_another_transcript():
    play = Play()
    items = play.adverts()
    higher = encoding.encode(replace(call_of(items["site-00"]), threshold=8))
    for name, item in items.items():
        said = play.share(name, higher if name == "site-00" else item)
        if name != "site-00":
            play.stage = summation.take(play.stage, name, said)
    with pytest.raises(SumRefusedError, match="site-00 deals for another cohort, threshold"):
        summation.take(play.stage, "site-00", said_by(play, "site-00", higher))


def said_by(play, name, item):
    """A site's deal once more, as if it had not dealt yet."""
    state, promises = play_advert(play, name), Promises(RUN)
    return participant.share(state, item, promises, drawn(b""))[1]


def play_advert(play, name):
    """The state in which a site advertised."""
    return participant.advertise(play.cast.sites[name], play.spec, (), Promises(RUN), drawn(name.encode()))[0]


@pytest.mark.parametrize("size", [1, 2])
def test_a_cohort_too_small_is_refused(size):
    play = Play()
    call = call_of(play.adverts()["site-00"])
    small = s.CohortCall(call.adverts[:size], size)
    with pytest.raises(SumRefusedError, match=f"a cohort of {size} organizations; this site asks for 3"):
        play.share("site-00", encoding.encode(small))


def test_a_site_asks_for_as_many_organizations_as_its_own_floors_say():
    floors = SumFloors(min_organizations=5, suites=tuple(Suite))
    play = Play(cast=cast_of([f"site-{place}" for place in range(4)], floors=floors))
    with pytest.raises(SumRefusedError, match="a cohort of 4 organizations; this site asks for 5"):
        play.share("site-0", play.adverts()["site-0"])


def test_several_envoys_of_one_organization_count_as_one():
    names = [f"site-{place}" for place in range(6)]
    one_owner = dict.fromkeys(names[1:5], "Clinic  Chain") | {"site-4": "clinic chain"}
    play = Play(cast=cast_of(names, one_owner, ANY))
    play.stage = summation.begin(SPEC, cast_of(names).roster)  # the director says they are all different
    item = play.adverts()["site-0"]
    with pytest.raises(SumRefusedError, match="a threshold of 5 for 6 envoys"):
        play.share("site-0", item)
    two = Play(cast=cast_of(names, dict.fromkeys(names[1:], "one"), ANY))
    two.stage = summation.begin(SPEC, cast_of(names).roster)
    with pytest.raises(SumRefusedError, match="a cohort of 2 organizations"):
        two.share("site-0", two.adverts()["site-0"])


def test_a_suite_below_the_sites_own_is_refused_before_anything_is_said():
    site = cast_of(["site-00"], floors=SumFloors()).sites["site-00"]
    with pytest.raises(SumRefusedError, match="x25519; this site accepts mlkem768-x25519"):
        participant.advertise(site, SPEC, (), Promises(RUN), drawn(b""))


def test_keys_of_a_weaker_suite_are_refused():
    strong = replace(SPEC, terms=SumTerms(bounds=(1.0,), max_weight=10))
    play = Play(4, spec=strong)
    call = call_of(play.adverts()["site-00"])
    weak = s.Advert(strong.digest, key_pair(Suite.X25519, b"a" * 32)[1], key_pair(Suite.X25519, b"b" * 32)[1])
    forged = signed("site-01", Kind.ADVERT, encoding.advert_body(weak), identity_of("site-01").sign)
    with pytest.raises(SumRefusedError, match="keys of another suite"):
        play.share("site-00", encoding.encode(replace(call, adverts=(call.adverts[0], forged, *call.adverts[2:]))))


@pytest.mark.parametrize("how", ["twice", "order"])
def test_a_cohort_with_a_name_twice_or_out_of_order_is_refused(how):
    play = Play()
    call = call_of(play.adverts()["site-00"])
    first, second, *rest = call.adverts
    adverts = (first, first, second, *rest[:-1]) if how == "twice" else (second, first, *rest)
    with pytest.raises(SumRefusedError, match="not in the order of names"):
        play.share("site-00", encoding.encode(replace(call, adverts=adverts)))


def test_a_cohort_without_the_site_itself_or_beyond_those_asked_is_refused():
    play = Play()
    call = call_of(play.adverts()["site-00"])
    with pytest.raises(SumRefusedError, match="closed without it"):
        play.share("site-00", encoding.encode(replace(call, adverts=call.adverts[1:])))
    fewer = Play(spec=replace(SPEC, contributors=4))
    with pytest.raises(SumRefusedError, match="a cohort of 10 envoys, and 4 were asked"):
        fewer.adverts()


def test_one_advert_serves_for_one_site_alone():
    """A site that copies another's keys to make both masks cancel is refused by all."""
    play = Play()
    item = play.adverts()["site-00"]
    call, place, _ = rewritten(play, "site-01", item)
    stolen = encoding.read_advert(call.adverts[2].body)
    copied = signed("site-01", Kind.ADVERT, encoding.advert_body(stolen), identity_of("site-01").sign)
    adverts = (*call.adverts[:place], copied, *call.adverts[place + 1 :])
    with pytest.raises(SumRefusedError, match="two envoys of the cohort advertise one key"):
        play.share("site-00", encoding.encode(replace(call, adverts=adverts)))


# ------------------------------------------------------------------ replay


def test_statements_of_an_earlier_round_or_attempt_fit_nowhere():
    earlier = Play()
    old = earlier.consents()["site-00"]
    for spec in (spec_for((4,), 10, round_number=2), spec_for((4,), 10, attempt=2)):
        later = Play(spec=spec, cast=earlier.cast)
        delivery = later.deliveries()["site-00"]
        old_delivery = encoding.decode(Play(cast=earlier.cast).deliveries()["site-00"])
        mixed = encoding.decode(delivery)
        mixed = replace(mixed, dealt=(*mixed.dealt[:5], old_delivery.dealt[5], *mixed.dealt[6:]))
        with pytest.raises(SumRefusedError, match="deals for another cohort"):
            participant.receive(later.states["site-00"], encoding.encode(mixed), later.promises["site-00"])
        later.mask("site-00", delivery)
        old_call = encoding.encode(s.SurvivorsCall(encoding.decode(old).body))
        with pytest.raises(SumRefusedError, match="another sum"):
            later.consent("site-00", old_call)


def test_a_site_shares_once_in_an_attempt():
    play = Play()
    items = play.adverts()
    state = play.states["site-00"]
    play.share("site-00", items["site-00"])
    with pytest.raises(SumRefusedError, match="once is enough"):
        participant.share(state, items["site-00"], play.promises["site-00"], drawn(b"again"))
    with pytest.raises(SumRefusedError, match="waits for the next attempt"):
        play.advertise("site-00")


# ------------------------------------------------------------------ deliveries


def test_a_delivery_that_lacks_too_many_peers_the_site_itself_or_their_order_is_refused():
    play = Play()
    whole = encoding.decode(play.deliveries()["site-00"])
    state, promises = play.states["site-00"], play.promises["site-00"]
    for dealt, why in (
        (whole.dealt[:6], "6 envoys shared their secrets, and the threshold is 7"),
        (whole.dealt[1:], "left out of the delivery"),
        (whole.dealt[::-1], "not in the cohort's order"),
        ((*whole.dealt, whole.dealt[-1]), "not in the cohort's order"),
    ):
        with pytest.raises(SumRefusedError, match=why):
            participant.receive(state, encoding.encode(s.Delivery(tuple(dealt))), promises)


def test_pieces_exchanged_between_sites_are_refused():
    play = Play()
    items = play.deliveries()
    mine, other = encoding.decode(items["site-00"]), encoding.decode(items["site-01"])
    swapped = replace(mine.dealt[3], piece=other.dealt[3].piece)
    mixed = s.Delivery((*mine.dealt[:3], swapped, *mine.dealt[4:]))
    with pytest.raises(SumRefusedError, match="signed another piece for site-00"):
        participant.receive(play.states["site-00"], encoding.encode(mixed), play.promises["site-00"])


def test_sites_that_were_told_of_different_sharers_open_nothing_together():
    """The split view of U2: each half sees other sharers, and neither finds the consents."""
    play = Play()
    items = play.deliveries()
    partial = {
        name: encoding.encode(s.Delivery(tuple(d for d in encoding.decode(item).dealt if d.deal.by != "site-09")))
        for name, item in items.items()
    }
    for name, item in items.items():
        if name == "site-09":
            continue
        said = play.mask(name, partial[name] if name < "site-04" else item)
        if name >= "site-04":
            play.stage = summation.take(play.stage, name, said)
        else:
            with pytest.raises(SumRefusedError, match="masked a vector for another sum"):
                summation.take(play.stage, name, said)
    forged = s.Consent(play.stage.cohort.transcript, play.stage.delivery, tuple(n for n in items if n != "site-09"))
    call = encoding.encode(s.SurvivorsCall(encoding.consent_body(forged)))
    play.consent("site-04", call)
    with pytest.raises(SumRefusedError, match="other envoys shared than this site was told"):
        play.consent("site-00", call)


# ------------------------------------------------------------------ survivors and consents


def test_of_two_survivor_sets_neither_finds_its_consents():
    """The split view: half of the sites are told that site-09 dropped out, and the others that it did not."""
    play = Play()
    items = play.surveys()
    voices = {True: [], False: []}
    for place, name in enumerate(play.cast.names[:9]):
        call = items[name] if place % 2 else survey(play, play.cast.names[:9])
        voices[bool(place % 2)].append(encoding.decode(play.consent(name, call)))
    for side in voices.values():
        assert len(side) < play.stage.threshold
    mixed = [s.Voice(one.by, one.signature) for one in (*voices[True], *voices[False])]
    for side in voices.values():
        consents = encoding.encode(s.ConsentSet(side[0].body, tuple(mixed)))
        with pytest.raises(SumRefusedError, match="not signed by the identity key"):
            play.unmask(side[0].by, consents)


def test_a_site_consents_once():
    play = Play()
    items = play.surveys()
    state = play.states["site-00"]
    play.consent("site-00", items["site-00"])
    with pytest.raises(SumRefusedError, match="consented to another set"):
        participant.consent(state, survey(play, play.cast.names[:8]), play.promises["site-00"])


@pytest.mark.parametrize(
    ("survivors", "why"),
    [
        (range(6), "a sum over 6 envoys, and the threshold is 7"),
        (range(1, 10), "site-00 is asked to consent to a sum that it is not in"),
        ([0, 1, 2, 3, 4, 5, 6, 6], "not in the order of names"),
        ([1, 0, 2, 3, 4, 5, 6], "not in the order of names"),
    ],
)
def test_a_survivor_set_too_small_without_the_site_or_out_of_order_is_refused(survivors, why):
    play = Play()
    play.surveys()
    with pytest.raises(SumRefusedError, match=why):
        play.consent("site-00", survey(play, [f"site-{place:02d}" for place in survivors]))


def test_a_survivor_that_never_shared_is_refused():
    play = Play()
    items = play.deliveries(without=("site-09",))
    for name, item in items.items():
        play.stage = summation.take(play.stage, name, play.mask(name, item))
    play.stage, _ = summation.call_survivors(play.stage, play.stage.announced)
    with pytest.raises(SumRefusedError, match="site-09 is said to have survived"):
        play.consent("site-00", survey(play, play.cast.names))


def test_too_few_consents_one_counted_twice_or_one_of_a_site_outside_the_sum_open_nothing():
    play = Play()
    item = play.consents(survivors=play.cast.names[:8])["site-00"]
    consents = encoding.decode(item)
    for voices, why in (
        (consents.voices[:6], "6 consents, and the threshold is 7"),
        ((*consents.voices[:6], consents.voices[0]), "a consent counts once"),
        ((*consents.voices[:6], play.voice("site-09", consents.body)), "site-09 consents to a sum that it is not in"),
    ):
        with pytest.raises(SumRefusedError, match=why):
            play.unmask("site-00", encoding.encode(s.ConsentSet(consents.body, tuple(voices))))


def test_a_signature_under_another_kind_of_statement_is_no_consent():
    """A site that can be brought to sign one thing has not signed another."""
    play = Play()
    consents = encoding.decode(play.consents()["site-00"])
    masked = Signed("site-01", Kind.MASKED, consents.body, b"")
    wrong = signed("site-01", Kind.MASKED, masked.body, play.cast.sites["site-01"].sign).signature
    voices = (consents.voices[0], s.Voice("site-01", wrong), *consents.voices[2:])
    with pytest.raises(SumRefusedError, match="site-01: its consent is not signed"):
        play.unmask("site-00", encoding.encode(replace(consents, voices=voices)))


# ------------------------------------------------------------------ unmasking


def test_a_second_unmask_is_refused():
    play = Play()
    item = play.consents()["site-00"]
    state = play.states["site-00"]
    play.unmask("site-00", item)
    with pytest.raises(SumRefusedError, match="already revealed its shares"):
        participant.unmask(state, item, play.promises["site-00"])


def test_nobody_ever_reveals_both_shares_of_one_site():
    """A site's one answer holds one share of each; a second set of survivors, which asks for the other, is refused."""
    play = Play()
    item = play.consents(survivors=play.cast.names[:8])["site-00"]
    state = play.states["site-00"]
    held = dict(state.held)
    unmasking = encoding.read_unmasking(encoding.decode(play.unmask("site-00", item)).body)
    for name, share in zip(play.cast.names, unmasking.shares, strict=True):
        assert share == held[name][name < "site-08"]
    other = replace(state.consent, survivors=play.cast.names)
    body = encoding.consent_body(other)
    voices = tuple(play.voice(name, body) for name in play.cast.names)
    with pytest.raises(SumRefusedError):
        participant.unmask(state, encoding.encode(s.ConsentSet(body, voices)), play.promises["site-00"])


def test_after_a_restart_between_consent_and_unmask_a_site_has_nothing_to_reveal():
    """Keys live in memory alone: what is left is the journal, and that lets the site into this attempt no more."""
    play = Play()
    play.consents()
    restarted = Play(cast=play.cast, promises=play.promises)
    with pytest.raises(SumRefusedError, match="already shared its secrets"):
        restarted.advertise("site-00")
    assert not play.promises["site-00"].of(SPEC.ref).unmasked


def test_a_site_that_lost_its_journal_goes_no_further():
    play = Play()
    items = play.consents()
    with pytest.raises(SumRefusedError, match="journal does not know"):
        participant.unmask(play.states["site-00"], items["site-00"], Promises(RUN))


def test_a_site_reveals_nothing_of_an_attempt_that_it_gave_up():
    play = Play()
    items = play.consents()
    state = play.states["site-00"]
    play.advertise("site-00", spec_for((4,), 10, attempt=2))
    with pytest.raises(SumRefusedError, match="gave round 1 of rehearsal-1 up"):
        participant.unmask(state, items["site-00"], play.promises["site-00"])


# ------------------------------------------------------------------ repeated rounds and differences


def test_consents_collected_and_then_called_a_failure_give_no_second_sum():
    """The director opens attempt 1 with seven sites and tells the other three that it failed before consent."""
    play = Play()
    items = play.consents()
    for name in play.cast.names[:7]:
        play.unmask(name, items[name])
    second = spec_for((4,), 13, attempt=2)
    others = [f"site-{place:02d}" for place in range(3, 13)]
    cast = cast_of([f"site-{place:02d}" for place in range(13)], floors=ANY)
    again = Play(cast=cast, spec=second, promises=play.promises)
    calls = again.adverts(others)
    for name in play.cast.names[3:]:
        with pytest.raises(
            SumRefusedError, match=r"was masked in attempt 1, which 3 of its 10 envoys gave up and 5 must"
        ):
            again.share(name, calls[name])
    for name in others[7:]:
        again.share(name, calls[name])  # they were in no sum yet


def test_the_same_cohort_again_gives_the_same_sum_or_none():
    """After some sites opened attempt 1, the whole cohort may repeat it, and consents to the very same survivors."""
    play = Play()
    items = play.consents(survivors=play.cast.names[:9])
    for name in play.cast.names[:7]:
        play.unmask(name, items[name])
    again = Play(cast=play.cast, spec=spec_for((4,), 10, attempt=2), promises=play.promises, seed=b"2")
    again.surveys()
    refused = 0
    for name in play.cast.names:
        try:
            again.consent(name, survey(again, play.cast.names))
        except SumRefusedError:
            refused += 1
    assert refused == 9  # all who consented before: the tenth finds no threshold


@pytest.mark.parametrize(
    ("terms", "why"), [({"max_weight": 999}, "a run has one rule"), ({"bounds": (2.0,)}, "cut at other bounds")]
)
def test_the_same_cohort_again_with_other_weights_or_bounds_is_refused(terms, why):
    """Two sums over the same sites, one counting 999 examples at most and one 1000, differ by the largest site."""
    play = Play()
    for name, item in play.consents().items():
        play.unmask(name, item)
    spec = spec_for((4,), 10, replace(SPEC.terms, **terms), attempt=2)
    again = Play(cast=play.cast, spec=spec, promises=play.promises, seed=b"2")
    for name, call in again.adverts().items():
        with pytest.raises(SumRefusedError, match=why):
            again.share(name, call)


def test_across_the_rounds_of_a_run_sites_weigh_by_one_rule_and_clip_by_one():
    play = Play()
    play.consents()
    second = spec_for((4,), 10, replace(SPEC.terms, bounds=(2.0,)), round_number=2)  # bounds follow the sums

    def shared(spec):
        again = Play(cast=play.cast, spec=spec, promises=play.promises, seed=b"2")
        return again.share(*next(iter(again.adverts().items())))

    assert shared(second)
    with pytest.raises(SumRefusedError, match="round 1 did by examples, at most 1000"):
        shared(replace(second, terms=replace(SPEC.terms, max_weight=999)))
    with pytest.raises(SumRefusedError, match="asks for another seed or protection than round 1"):
        shared(replace(second, orders="a norm just below the largest"))


def test_one_more_colluding_site_than_the_policy_allows_for_would_be_needed_to_lie_about_giving_up():
    """Six of ten opened nothing and say so, one lies: that is enough. One voice fewer is not."""
    play = Play()
    items = play.consents()
    for name in play.cast.names[:6]:
        play.unmask(name, items[name])
    second = spec_for((4,), 9, attempt=2)
    cast = cast_of(list(play.cast.names[1:]), floors=ANY)
    lying = {**play.promises, "site-01": replace_last(play.promises["site-01"], unmasked=False)}
    for promises, passes in ((lying, True), (play.promises, False)):
        again = Play(cast=cast, spec=second, promises=promises)
        calls = again.adverts()
        if passes:
            again.share("site-09", calls["site-09"])
            assert again.promises["site-09"].earlier(second.ref)[0].dead
        else:
            with pytest.raises(SumRefusedError, match="4 of its 10 envoys gave up and 5 must"):
                again.share("site-09", calls["site-09"])


def replace_last(promises, **changes):
    return promises.put(replace(promises.records[-1], **changes))


def test_attempts_that_were_begun_side_by_side_do_not_both_get_the_update():
    """Adverts of two attempts are out before either cohort closes, so that neither gave the other up."""
    first = Play()
    second = Play(cast=first.cast, spec=spec_for((4,), 10, attempt=2))
    items = first.adverts()
    others = second.adverts(first.cast.names[:9])
    for name in second.cast.names[:9]:
        first.stage = summation.take(first.stage, name, first.share(name, items[name]))
        second.promises[name] = first.promises[name]
        second.stage = summation.take(second.stage, name, second.share(name, others[name]))
    deliveries = (summation.deliver(first.stage)[1], summation.deliver(second.stage)[1])
    for name in second.cast.names[:9]:
        now = second.promises[name]
        with pytest.raises(SumRefusedError, match="gave round 1 of rehearsal-1 up"):
            participant.receive(first.states[name], deliveries[0][name], now)
        participant.receive(second.states[name], deliveries[1][name], now)
        masked = now.put(replace(now.records[0], masked=True))  # if it had left nevertheless
        with pytest.raises(SumRefusedError, match="which 0 of its 10 envoys gave up and 5 must"):
            participant.receive(second.states[name], deliveries[1][name], masked)


def test_within_a_round_dropping_one_site_to_difference_two_sums_is_refused():
    play = Play()
    items = play.consents()
    for name, item in items.items():
        play.stage = summation.take(play.stage, name, play.unmask(name, item))
    summation.open_sum(play.stage)
    nine = play.cast.names[:9]
    again = Play(cast=play.cast, spec=spec_for((4,), 10, attempt=2), promises=play.promises)
    calls = again.adverts(nine)
    for name in nine:
        with pytest.raises(SumRefusedError, match="gave up and 5 must"):
            again.share(name, calls[name])
    same = Play(cast=play.cast, spec=spec_for((4,), 10, attempt=3), promises=play.promises)
    same.surveys()
    with pytest.raises(SumRefusedError, match="a second one would tell them apart"):
        same.consent("site-00", survey(same, nine))


def test_across_rounds_sums_that_differ_by_one_site_are_as_many_as_the_policy_says_and_no_more():
    floors = SumFloors(suites=tuple(Suite), max_differing_sums=2)
    cast = cast_of([f"site-{place:02d}" for place in range(10)], floors=floors)
    promises, refused = {}, []
    for number, missing in enumerate([None, "site-09", None, "site-08", "site-09", "site-07", None], start=1):
        play = Play(cast=cast, spec=spec_for((4,), 10, round_number=number), promises=promises)
        play.surveys()
        try:
            play.consent("site-00", survey(play, [n for n in cast.names if n != missing]))
        except SumRefusedError as error:
            refused.append((number, str(error).rpartition(" ")[2]))
        promises = play.promises
    assert refused == [(6, "max_differing_sums")]


# ------------------------------------------------------------------ bad sites


def test_a_wrong_revealed_share_is_laid_at_the_door_of_who_revealed_it_and_the_sum_goes_on():
    play = Play()
    items = play.consents()
    for name, item in items.items():
        said = encoding.decode(play.unmask(name, item))
        if name == "site-03":
            unmasking = encoding.read_unmasking(said.body)
            wrong = replace(unmasking, shares=(unmasking.shares[1], *unmasking.shares[1:]))
            forged = signed(name, Kind.UNMASKING, encoding.unmasking_body(wrong), play.cast.sites[name].sign)
            with pytest.raises(BadShareError, match="site-03 reveals another share") as caught:
                summation.take(play.stage, name, encoding.encode(forged))
            assert caught.value.site == "site-03"
        else:
            play.stage = summation.take(play.stage, name, encoding.encode(said))
    assert summation.open_sum(play.stage).survivors == play.cast.names


def forged_deal(play, name, item, lies):
    """A malicious site's deal, signed and well formed, of what it likes."""
    state, cohort = play.states[name], summation.cohort_of(play.spec, play.cast.roster, call_of(item))
    suite, count, random = play.spec.terms.suite, len(cohort.names), drawn(b"evil")
    mask_shares = split(lies.get("mask_secret", state.mask_secret), cohort.threshold, count, random)
    self_shares = split(lies.get("self_secret", state.self_secret), cohort.threshold, count, random)
    if "polynomial" in lies:
        self_shares = [random(33)[:32].rjust(33, b"\0") for _ in range(count)]
    pieces = []
    for to, one, two in zip(cohort.names, mask_shares, self_shares, strict=True):
        seed, is_seed = cohort.derived(state.mask_secret, "pair seed", name, to), cohort.deals(name, to)
        is_lied_to = to in lies.get("lied_to", cohort.names)
        sealed = lies.get("sealed_seed", seed) if is_lied_to else seed
        committed = lies.get("committed_seed", seed) if is_lied_to else seed
        plain = two + one if lies.get("exchanged_for") == to else one + two
        box = seal(suite, cohort.advert(to).share_key, plain, cohort.box_info("shares", name, to))
        pair_box = seal(suite, cohort.advert(to).mask_key, sealed, cohort.box_info("pair seed", name, to))
        piece = s.Piece(
            share_box=b"" if to == name else box,
            pair_box=pair_box if is_seed else b"",
            mask_share_commitment=cohort.commitment(one, "mask share", name, to),
            self_share_commitment=cohort.commitment(two, "self share", name, to),
            pair_commitment=cohort.commitment(committed, "pair seed", name, to) if is_seed else b"",
        )
        pieces.append(encoding.piece_bytes(piece))
    deal = s.Deal(
        transcript=cohort.transcript,
        mask_commitment=cohort.commitment(state.mask_secret, "mask secret", name),
        self_commitment=cohort.commitment(state.self_secret, "self secret", name),
        pieces=tuple(hashlib.sha256(piece).digest() for piece in pieces),
    )
    place = cohort.place(name)
    return (
        s.Shares(signed(name, Kind.DEAL, encoding.deal_body(deal), play.cast.sites[name].sign), tuple(pieces)),
        (mask_shares[place], self_shares[place]),
    )


def with_a_bad_dealer(name, *, dropped=(), play=None, **lies):
    """A sum in which one site deals lies and some drop out after that, up to its opening; and who refused the deal."""
    play, refusals = play or Play(), {}
    for one, item in play.adverts().items():
        forged = forged_deal(play, one, item, lies) if one == name else None
        said = play.share(one, item)
        if forged is not None:
            play.states[one] = replace(play.states[one], deal=forged[0].deal, own_shares=forged[1])
            said = encoding.encode(forged[0])
        play.stage = summation.take(play.stage, one, said)
    play.stage, items = summation.deliver(play.stage)
    for one in items.keys() - set(dropped):
        try:
            play.stage = summation.take(play.stage, one, play.mask(one, items[one]))
        except BadShareError as error:
            refusals[one] = error
    play.stage, items = summation.call_survivors(play.stage, play.stage.announced)
    for one, item in items.items():
        play.stage = summation.take(play.stage, one, play.consent(one, item))
    play.stage, items = summation.reveal(play.stage)
    for one, item in items.items():
        play.stage = summation.take(play.stage, one, play.unmask(one, item))
    return play, refusals


def test_the_forged_deal_of_these_tests_is_an_honest_one_where_it_does_not_lie():
    play, refusals = with_a_bad_dealer("site-04", dropped=("site-02", "site-04"))
    assert refusals == {}
    assert len(summation.open_sum(play.stage).survivors) == 8


@pytest.mark.parametrize(
    ("lies", "dropped", "why"),
    [
        ({"self_secret": b"x" * 32}, (), "site-04 dealt shares of another self secret"),
        ({"polynomial": True}, (), "site-04 dealt shares of (another self secret|its self secret that belong to no)"),
        ({"mask_secret": b"x" * 32}, ("site-04",), "site-04 dealt shares of another mask secret"),
    ],
    ids=["self secret", "no polynomial", "mask secret"],
)
def test_a_dealer_whose_shares_are_those_it_committed_to_but_of_another_secret_is_named(lies, dropped, why):
    play, refusals = with_a_bad_dealer("site-04", dropped=dropped, **lies)
    assert refusals == {}
    with pytest.raises(BadShareError, match=why) as caught:
        summation.open_sum(play.stage)
    assert caught.value.site == "site-04"


def test_a_site_that_deals_another_share_than_it_committed_to_is_named_by_whoever_got_it():
    _, refusals = with_a_bad_dealer("site-04", exchanged_for="site-06")
    assert set(refusals) == {"site-06"}
    assert refusals["site-06"].site == "site-04"


def dealt_to(dealer):
    """To whom the dealer deals the seed of the pair."""
    play = Play()
    cohort = summation.cohort_of(SPEC, play.cast.roster, call_of(play.adverts()["site-00"]))
    return next(name for name in cohort.names if cohort.deals(dealer, name))


def test_a_pair_seed_that_is_not_the_committed_one_is_named_by_whoever_got_it():
    victim = dealt_to("site-09")
    play, refusals = with_a_bad_dealer("site-09", sealed_seed=b"s" * 32, lied_to=[victim])
    assert {name: error.site for name, error in refusals.items()} == {victim: "site-09"}
    with pytest.raises(BadShareError, match=f"site-09 dealt {victim} another pair seed"):
        summation.open_sum(play.stage)  # the victim is out, so its mask key opens the box for all to see


def test_a_survivors_pair_seed_that_is_not_the_committed_one_is_named_when_the_other_site_dropped_out():
    """Whoever could have complained is gone before it could: its mask key, rebuilt, opens the box."""
    victim = dealt_to("site-09")
    play, refusals = with_a_bad_dealer("site-09", dropped=[victim], sealed_seed=b"s" * 32, lied_to=[victim])
    assert refusals == {}
    with pytest.raises(BadShareError, match=f"site-09 dealt {victim} another pair seed") as caught:
        summation.open_sum(play.stage)
    assert caught.value.site == "site-09"


def test_a_pair_seed_that_does_not_follow_from_the_mask_secret_is_named_when_its_dealer_dropped_out():
    """Sealed and committed alike, so that nobody saw it; but it is not the one that the mask secret gives."""
    play, refusals = with_a_bad_dealer("site-04", dropped=("site-04",), sealed_seed=b"s" * 32, committed_seed=b"s" * 32)
    assert refusals == {}
    with pytest.raises(BadShareError, match=r"site-04 dealt site-0\d another pair seed") as caught:
        summation.open_sum(play.stage)
    assert caught.value.site == "site-04"


def test_a_mask_key_that_does_not_follow_from_the_mask_secret_is_named_when_its_owner_dropped_out():
    play = Play()
    state = play_advert(play, "site-04")
    private, public = key_pair(Suite.X25519, b"unrelated".ljust(32))
    advert = replace(encoding.read_advert(state.advert.body), mask_key=public)
    forged = signed("site-04", Kind.ADVERT, encoding.advert_body(advert), play.cast.sites["site-04"].sign)

    def advertise(name, spec=None):
        said = Play.advertise(play, name, spec)
        if name == "site-04":
            play.states[name] = replace(play.states[name], advert=forged, mask_key=private)
            said = encoding.encode(forged)
        return said

    play.advertise = advertise
    play, refusals = with_a_bad_dealer("site-04", dropped=("site-04",), play=play)
    assert refusals == {}
    with pytest.raises(BadShareError, match="does not follow from its mask secret") as caught:
        summation.open_sum(play.stage)
    assert caught.value.site == "site-04"


def test_a_site_whose_key_is_none_is_named_before_it_stops_the_others():
    """X25519's point of small order: every site that sealed to it would refuse."""
    play = Play()
    state = play_advert(play, "site-04")
    advert = replace(encoding.read_advert(state.advert.body), share_key=bytes(32))
    forged = signed("site-04", Kind.ADVERT, encoding.advert_body(advert), play.cast.sites["site-04"].sign)
    with pytest.raises(MalformedMessageError, match="site-04 advertises a public key"):
        summation.take(play.stage, "site-04", encoding.encode(forged))
    call = call_of(play.adverts()["site-00"])  # a director that lets it pass
    adverts = (*call.adverts[:4], forged, *call.adverts[5:])
    with pytest.raises(BadShareError, match="site-04 advertised a public key") as caught:
        play.share("site-00", encoding.encode(replace(call, adverts=adverts)))
    assert caught.value.site == "site-04"


def test_a_deal_with_boxes_too_many_or_pieces_that_it_did_not_sign_is_refused_at_once():
    play = Play()
    item = play.adverts()["site-00"]
    said = encoding.decode(play.share("site-00", item))
    other = encoding.encode(replace(said, pieces=(*said.pieces[1:], said.pieces[0])))
    with pytest.raises(MalformedMessageError, match="not those that its deal is signed over"):
        summation.take(play.stage, "site-00", other)


@pytest.mark.parametrize("cut", [slice(None, -1), slice(None, None)], ids=["truncated", "over-long"])
def test_a_truncated_or_over_long_vector_is_refused(network, cut):
    attempt = network(5)

    def changed(step, name, content):
        if step is not Step.MASKED or name != "site-02":
            return content
        said = encoding.decode(content)
        header = encoding.read_masked(said.body)
        words = header.words - 1 if cut.stop else header.words + 1
        body = encoding.masked_body(replace(header, words=words))
        return encoding.encode(signed(name, Kind.MASKED, body, attempt.cast.sites[name].sign))

    outcome = replace(attempt, tamper_up=changed).run()
    assert isinstance(outcome.refusals["site-02"], MalformedMessageError)
    assert "expected" in str(outcome.refusals["site-02"])
    assert "site-02" not in outcome.survivors


def test_a_vector_that_was_changed_on_its_way_is_in_no_sum(network):
    """The director compares what came with the digest that the site signed; here, the header of another vector."""
    attempt = network(5)

    def changed(step, name, content):
        if step is not Step.MASKED or name != "site-02":
            return content
        said = encoding.decode(content)
        body = encoding.masked_body(replace(encoding.read_masked(said.body), digest=bytes(32)))
        return encoding.encode(signed(name, Kind.MASKED, body, attempt.cast.sites[name].sign))

    outcome = replace(attempt, tamper_up=changed).run()
    assert outcome.survivors == ("site-00", "site-01", "site-03", "site-04")
    assert outcome.tallies.contributions == 4


@pytest.mark.parametrize("step", list(Step))
@pytest.mark.parametrize("place", [0, 9, 40, 80, -70, -1])
def test_one_changed_byte_of_any_message_keeps_its_site_out_or_changes_nothing(network, step, place):
    attempt = network(5)

    def changed(at, name, content):
        if at is not step or name != "site-01":
            return content
        raw = bytearray(content)
        raw[place % len(raw)] ^= 1
        return bytes(raw)

    outcome = replace(attempt, tamper_up=changed, tamper_down=changed).run()
    assert set(outcome.refusals) <= {"site-01"}
    if outcome.aborted is None:
        whole = attempt.run()
        assert set(outcome.survivors) >= set(whole.survivors) - {"site-01"}
        assert outcome.tallies.contributions == len(outcome.survivors)


def test_mask_keys_follow_from_the_mask_secret_and_the_sum():
    secret = b"m" * 32
    assert mask_key_seed(SPEC, secret) != mask_key_seed(spec_for((4,), 10, attempt=2), secret)

"""A malicious director and one corrupt site try what they like, in any order, against the real code of four others.

The director begins two or three attempts of one round with cohorts as it likes, walks them side by side, leads some
sites further than others, tells them of different sharers and survivors, and restarts some. The corrupt site signs
everything, says that it gave everything up, and gave the director every share that was dealt to it. Whatever happens,
no update is laid bare and none is in two opened sums over different sites. With one of the rules taken away, the same
search finds what it prevents. Plays follow from their number.
"""

import random
from dataclasses import replace
from itertools import combinations

import pytest
from fedveil.utils.errors import BadShareError, SumRefusedError
from fedveil.utils.secure_sum import encoding, participant
from fedveil.utils.secure_sum import statements as s
from fedveil.utils.secure_sum.cohort import cohort_of
from fedveil.utils.secure_sum.rehearsal import cast_of, drawn, spec_for
from fedveil.utils.secure_sum.rules import Promises, SumFloors, threshold_of
from fedveil.utils.secure_sum.signed import Kind, signed
from fedveil.utils.secure_sum.terms import Suite

HONEST, CORRUPT = ("a", "b", "c", "d"), "e"
CAST = cast_of([*HONEST, CORRUPT], floors=SumFloors(suites=tuple(Suite)))
RUN = "rehearsal-1"
REFUSED = (SumRefusedError, BadShareError)


class Attempt:
    """One attempt, as the director sees it."""

    def __init__(self, number):
        self.spec = spec_for((), 5, attempt=number)
        self.adverts, self.deals, self.states = {}, {}, {}
        self.voices, self.revealed, self.masked = {}, {}, set()
        self.cohort = self.call = None

    def known(self, dealer, is_survivor):
        """Shares of one of a site's two secrets that the director has: revealed ones, and the corrupt site's own."""
        told = sum((dealer in survivors) == is_survivor for survivors in self.revealed.values())
        return told + (CORRUPT in self.cohort.names)

    def opened(self):
        """The survivor sets whose sum the director can open: it has their vectors, and what removes the masks."""
        threshold = self.cohort.threshold if self.cohort else 0
        return {
            survivors
            for survivors in set(self.revealed.values())
            if set(survivors) - {CORRUPT} <= self.masked
            and all(self.known(name, name in survivors) >= threshold for name in self.deals)
        }


class Director:
    """One play: what is tried follows from ``random``."""

    def __init__(self, play):
        self.random = random.Random(play)
        self.promises = {name: Promises(RUN) for name in HONEST}
        self.calls = 0
        self.attempts = [Attempt(number) for number in range(1, self.random.choice([3, 3, 4]))]

    def draws(self):
        self.calls += 1
        return drawn(self.calls.to_bytes(4, "little"))

    def some(self, names, enough):
        """All of them, just enough, or any."""
        names = sorted(names)
        count = self.random.choice(
            [len(names), len(names), min(enough, len(names)), self.random.randint(0, len(names))]
        )
        return sorted(self.random.sample(names, count))

    def but_one(self, names, likely):
        """All of them, or all but one of the honest."""
        names = sorted(names)
        left_out = self.random.choice(HONEST) if self.random.random() < likely else None
        return tuple(name for name in names if name != left_out)

    def walk(self):
        """The attempts' steps, in an order of all of them in which each one's own are in order."""
        steps = [self.advertise, self.close, self.deliver, self.consent, self.consent, self.unmask]
        order = [at for at in range(len(self.attempts)) for _ in steps]
        if self.random.random() < 0.6:
            self.random.shuffle(order)
        left = [list(steps) for _ in self.attempts]
        for at in order:
            left[at].pop(0)(self.attempts[at])
            if self.random.random() < 0.04:
                self.restart(self.random.choice(HONEST))
        return self

    def advertise(self, one):
        for name in HONEST:
            try:
                state, said = participant.advertise(CAST.sites[name], one.spec, (), self.promises[name], self.draws())
            except REFUSED:
                continue
            self.promises[name] = state.promises
            one.adverts[name] = state, encoding.decode(said)

    def close(self, one):
        lies = tuple(other.cohort.transcript for other in self.attempts if other.cohort)
        state, _ = participant.advertise(CAST.sites[CORRUPT], one.spec, (), Promises(RUN), self.draws())
        body = encoding.advert_body(replace(encoding.read_advert(state.advert.body), given_up=lies))
        advert = signed(CORRUPT, Kind.ADVERT, body, CAST.sites[CORRUPT].sign)
        one.adverts[CORRUPT] = replace(state, advert=advert), advert
        names = self.but_one(one.adverts, 0.6)
        if len(names) < 3:
            return
        one.call = s.CohortCall(tuple(one.adverts[name][1] for name in names), threshold_of([1] * len(names), 1, 2))
        one.cohort = cohort_of(one.spec, CAST.roster, one.call)
        for name in names:
            kept = self.promises.get(name, Promises(RUN))
            try:
                state, said = participant.share(one.adverts[name][0], encoding.encode(one.call), kept, self.draws())
            except REFUSED:
                continue
            one.deals[name] = encoding.decode(said)
            if name in HONEST:
                self.promises[name], one.states[name] = state.promises, state

    def deliver(self, one):
        views = [self.but_one(one.deals, 0.2), self.but_one(one.deals, 0.2)]
        for name in one.states:
            place = one.cohort.place(name)
            view = self.random.choice(views)
            delivery = s.Delivery(tuple(s.Delivered(one.deals[d].deal, one.deals[d].pieces[place]) for d in view))
            try:
                ready = participant.receive(one.states[name], encoding.encode(delivery), self.promises[name])
            except REFUSED:
                continue
            self.promises[name] = ready.promises
            one.states[name], _ = participant.announce(ready, "00" * 32)
            one.masked.add(name)

    def consent(self, one):
        survivors = self.but_one(one.deals, 0.4)
        ready = [name for name, state in one.states.items() if isinstance(state, participant.Masked)]
        for name in self.some(ready, one.cohort.threshold - 1 if one.cohort else 0):
            state = one.states[name]
            body = encoding.consent_body(s.Consent(one.cohort.transcript, state.delivery, survivors))
            call = encoding.encode(s.SurvivorsCall(body))
            try:
                consented, said = participant.consent(state, call, self.promises[name])
            except REFUSED:
                continue
            self.promises[name], one.states[name] = consented.promises, consented
            voices = one.voices.setdefault(body, {})
            voices[name] = encoding.decode(said).signature
            if CORRUPT in survivors:
                voices[CORRUPT] = signed(CORRUPT, Kind.CONSENT, body, CAST.sites[CORRUPT].sign).signature

    def unmask(self, one):
        ready = [name for name, state in one.states.items() if isinstance(state, participant.Consented)]
        for name in self.some(ready, one.cohort.threshold - 1 if one.cohort else 0):
            state = one.states[name]
            voices = tuple(s.Voice(who, signature) for who, signature in sorted(one.voices[state.body].items()))
            try:
                item = encoding.encode(s.ConsentSet(state.body, voices))
                unmasked, _ = participant.unmask(state, item, self.promises[name])
            except REFUSED:
                continue
            self.promises[name], one.states[name] = unmasked.promises, unmasked
            one.revealed[name] = state.consent.survivors

    def restart(self, name):
        for one in self.attempts:
            one.states.pop(name, None)
            if one.cohort is None:
                one.adverts.pop(name, None)

    def breach(self):
        """What the director could do that it must not; None if nothing."""
        opened = {(at, found) for at, one in enumerate(self.attempts) for found in one.opened()}
        for one in self.attempts:
            for name in one.deals:
                both = [one.known(name, True), one.known(name, False)]
                if name in HONEST and min(both) >= one.cohort.threshold:
                    return f"both secrets of {name}"
        for _, found in opened:
            if len(set(found) & set(HONEST)) < 2:
                return f"a sum of {found}"
        for (_, found), (_, other) in combinations(sorted(opened), 2):
            if found != other and set(found) & set(other) & set(HONEST):
                return f"{found} and {other}"
        return None


def search(plays):
    """The first breach in so many plays, how many sums they opened, and in how many plays two of them."""
    sums, twice = 0, 0
    for play in range(plays):
        director = Director(play).walk()
        if breach := director.breach():
            return breach, sums, twice
        opened = [len(one.opened()) for one in director.attempts]
        sums += sum(opened)
        twice += sum(opened) > 1
    return None, sums, twice


@pytest.mark.slow
def test_whatever_a_director_and_one_site_try_no_update_is_told_from_a_sum():
    breach, sums, twice = search(100)
    assert breach is None
    assert sums > 20  # it would show nothing if nothing got so far
    assert twice > 0


@pytest.mark.slow
@pytest.mark.parametrize("taken_away", ["settle_retry", "check_differencing"])
def test_without_one_of_its_rules_the_same_search_finds_what_it_prevents(monkeypatch, taken_away):
    def nothing(*arguments):
        return arguments[0] if taken_away == "settle_retry" else None

    monkeypatch.setattr(participant, taken_away, nothing)
    breach, _, _ = search(1500)
    assert breach is not None

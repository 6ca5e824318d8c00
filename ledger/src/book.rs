//! The present: a fold of entries that knows what is committed under every budget and decides what may still be held.
//!
//! Must not know files, sockets or clocks. Deciding builds an entry and changes nothing; [`Book::apply`] is the only
//! change, live and in replay alike. Invariant: for every budget, what is settled, reserved and unknown is the exact sum
//! over its calls in the window of its latest hold, and no hold was made that did not fit the limit then in force.
//!
//! The states of a hold, and what each fact does to it (anything else is refused, and nothing changes):
//!
//! | state | Reserved | Settled | Released | Forfeited | Resolved, billed | Resolved, free |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | (none) | under way | | | | | |
//! | under way | | settled | gone | unknown | | |
//! | unknown | | settled, late | | | settled, without an answer | gone |
//! | settled, gone | | | | | | |
//!
//! A key is in flight while a hold of it is under way, and known once one was settled with an answer. A key in flight is
//! never held again; a known one only to refresh it; one whose hold is unknown may be, and then both count. `Forgotten`
//! makes a known key one that was never answered; no figure changes.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use crate::answer::Usage;
use crate::budget::{Budget, Refusal, Standing, Who, Window};
use crate::entry::{Cause, Entry, Exchange, Fact, HoldId, Origin, SettledItem, Tally};
use crate::exact;
use crate::money::{Amount, Usd, split};
use crate::price::{Price, PriceDigest, Quote, fee};
use crate::query::QueryKey;
use crate::time::{Day, Timestamp};

/// What somebody wants to ask, and its upper bound.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// What will be asked.
    pub exchange: Exchange,
    /// Its upper bound.
    pub quote: Quote,
    /// Whether a call that no budget covers is allowed.
    pub unbudgeted: bool,
}

/// Why no hold is made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReserved {
    /// A budget refuses.
    #[error(transparent)]
    Refused(Refusal),
    /// These keys are already known.
    #[error("{} keys are already known", .0.len())]
    Known(Vec<QueryKey>),
    /// These keys are being asked.
    #[error("{} keys are being asked", .0.len())]
    InFlight(Vec<QueryKey>),
}

/// Why a fact contradicts the book.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// No hold under way or unknown has this number.
    #[error("hold {} is not open, so it cannot be `{fact}`", .hold.0)]
    NotOpen {
        /// The hold.
        hold: HoldId,
        /// The fact's name.
        fact: &'static str,
    },
    /// The hold is open, but in a state that the fact does not fit.
    #[error("hold {} is {state}, so it cannot be `{fact}`", .hold.0)]
    WrongState {
        /// The hold.
        hold: HoldId,
        /// Its state.
        state: &'static str,
        /// The fact's name.
        fact: &'static str,
    },
    /// A hold with a number that is not the next.
    #[error("hold {} is not the next one, {}", .found.0, .expected.0)]
    OutOfOrder {
        /// Its number.
        found: HoldId,
        /// The next number.
        expected: HoldId,
    },
    /// A hold of no item, of an item twice, or of one that is in flight.
    #[error("hold {} holds no item, or one that is held already", .0.0)]
    Items(HoldId),
    /// An answer to other items than were held.
    #[error("the answer to hold {} is not to the items that were held", .0.0)]
    OtherItems(HoldId),
    /// A key without an answer.
    #[error("no answer is recorded under key {0}")]
    NotAnswered(QueryKey),
    /// A key that somebody asks just now.
    #[error("key {0} is being asked just now, so its answers cannot be forgotten")]
    BeingAsked(QueryKey),
    /// Time ran backwards.
    #[error("an entry of {found} follows one of {last}")]
    Backwards {
        /// The entry's time.
        found: Timestamp,
        /// The time of the entry before it.
        last: Timestamp,
    },
    /// A sum that does not fit 64 bits.
    #[error("a sum does not fit 64 bits")]
    Overflow,
}

/// A hold that is under way or unknown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenHold {
    /// Its number.
    pub hold: HoldId,
    /// When it was made.
    pub at: Timestamp,
    /// Who pays.
    pub who: Who,
    /// The model.
    pub model: String,
    /// The keys asked.
    pub keys: Vec<QueryKey>,
    /// What is held.
    pub amount: Amount,
    /// Why it is unknown; none while it is under way.
    pub unknown: Option<Cause>,
}

/// The figures of now, for metrics and for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Present {
    /// Everything together.
    pub total: Standing,
    /// Each budget and what is committed under it, by name; lifted budgets are left out.
    pub budgets: Vec<(Budget, Standing)>,
    /// Holds under way and unknown.
    pub open: Vec<OpenHold>,
    /// Items served from the record.
    pub known: u64,
    /// Items that followed a call of somebody else.
    pub followed: u64,
    /// What both saved.
    pub saved: Amount,
    /// Keys with an answer.
    pub answers: u64,
    /// Why nothing can be bought, where that is so.
    pub unwritable: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Hold {
    at: Timestamp,
    exchange: Exchange,
    amount: Amount,
    price: Option<PriceDigest>,
    metered: bool,
    unknown: Option<Cause>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    budget: Budget,
    configured: Option<Budget>,
    standing: Windowed,
}

/// What is committed in one window: the latest in which a hold was made.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Windowed {
    start: Day,
    standing: Standing,
}

/// What somebody has committed, in every window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Party([Windowed; Window::ALL.len()]);

/// A part of a standing.
#[derive(Clone, Copy)]
enum Part {
    Settled,
    Reserved,
    Unknown,
}

/// The present state of a store.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Book {
    budgets: BTreeMap<String, Kept>,
    parties: BTreeMap<Who, Party>,
    total: Standing,
    holds: BTreeMap<HoldId, Hold>,
    in_flight: BTreeMap<QueryKey, HoldId>,
    #[serde(deserialize_with = "exact::set")]
    answered: HashSet<QueryKey>,
    prices: BTreeMap<PriceDigest, Price>,
    known: u64,
    followed: u64,
    saved: Amount,
    last_hold: u64,
    last_at: Timestamp,
}

impl Windowed {
    /// The standing in the window that starts on `start`: nothing, where no hold has been made in it yet.
    fn at(&self, start: Day) -> Standing {
        if start == self.start { self.standing } else { Standing::default() }
    }

    /// Moves an amount of a hold whose window starts on `start`. A new hold opens a later window; a hold of an earlier
    /// window no longer counts.
    fn moved(
        self,
        start: Day,
        from: Option<(Part, Amount)>,
        to: Option<(Part, Amount)>,
    ) -> Result<Self, BookError> {
        if start < self.start {
            return Ok(self);
        }
        let standing = moved(self.at(start), from, to).ok_or(BookError::Overflow)?;
        Ok(Self { start, standing })
    }
}

impl Kept {
    fn at(&self, at: Timestamp) -> Standing {
        self.standing.at(self.budget.window.start(at))
    }
}

impl Party {
    fn moved(
        &self,
        made: Timestamp,
        from: Option<(Part, Amount)>,
        to: Option<(Part, Amount)>,
    ) -> Result<Self, BookError> {
        let mut party = self.clone();
        for (windowed, window) in party.0.iter_mut().zip(Window::ALL) {
            *windowed = windowed.moved(window.start(made), from, to)?;
        }
        Ok(party)
    }

    fn at(&self, window: Window, start: Day) -> Standing {
        let windows = self.0.iter().zip(Window::ALL);
        windows
            .filter(|(_, found)| *found == window)
            .map(|(windowed, _)| windowed.at(start))
            .next()
            .unwrap_or_default()
    }
}

impl Hold {
    fn state(&self) -> &'static str {
        if self.unknown.is_some() { "unknown" } else { "under way" }
    }

    fn part(&self) -> Part {
        if self.unknown.is_some() { Part::Unknown } else { Part::Reserved }
    }
}

impl Book {
    /// Decides whether a hold can be made, and builds its entry.
    ///
    /// # Errors
    /// A budget refuses, or keys are known or in flight.
    pub fn reserve(&self, claim: &Claim, at: Timestamp) -> Result<Entry, NotReserved> {
        let exchange = &claim.exchange;
        let keys = || exchange.items.iter().map(|item| item.key);
        let in_flight: Vec<_> = keys().filter(|key| self.in_flight.contains_key(key)).collect();
        if !in_flight.is_empty() {
            return Err(NotReserved::InFlight(in_flight));
        }
        let known: Vec<_> = keys().filter(|key| self.answered.contains(key)).collect();
        if !exchange.refresh && !known.is_empty() {
            return Err(NotReserved::Known(known));
        }
        let covering: Vec<_> = self.covering(&exchange.who).collect();
        if covering.is_empty() && !claim.unbudgeted {
            return Err(NotReserved::Refused(Refusal::NoBudget { who: exchange.who.clone() }));
        }
        for kept in &covering {
            kept.budget.admit(&kept.at(at.max(self.last_at)), &claim.quote).map_err(NotReserved::Refused)?;
        }
        Ok(self.entry(
            at,
            Fact::Reserved {
                hold: HoldId(self.last_hold + 1),
                exchange: exchange.clone(),
                amount: claim.quote.hold(),
                price: claim.quote.price.clone(),
                metered: claim.quote.metered,
                budgets: covering.iter().map(|kept| kept.budget.name.clone()).collect(),
            },
        ))
    }

    /// Builds the entry that settles a hold, with its fee and the items' exact shares.
    ///
    /// # Errors
    /// The hold is not open.
    pub fn settle(
        &self,
        hold: HoldId,
        usage: Option<Usage>,
        media: String,
        at: Timestamp,
    ) -> Result<Entry, BookError> {
        let open = self.open(hold, "Settled")?;
        let price = open.price.as_ref().and_then(|digest| self.prices.get(digest));
        let fee = fee(price, open.metered, open.amount, usage.as_ref());
        let items = &open.exchange.items;
        let weights: Vec<u64> = items.iter().map(|item| item.calls).collect();
        let tokens = split(fee.amount.tokens, &weights);
        let usd = fee.amount.usd.split(&weights);
        let share = |index: usize| Amount { calls: weights[index], tokens: tokens[index], usd: usd[index] };
        let items =
            items.iter().enumerate().map(|(index, item)| SettledItem { key: item.key, share: share(index) });
        let items = items.collect();
        Ok(self.entry(
            at,
            Fact::Settled { hold, usage, fee: fee.amount, whole_hold: fee.whole_hold, media, items },
        ))
    }

    /// Builds the entry that frees a hold under way.
    ///
    /// # Errors
    /// The hold is not under way.
    pub fn release(&self, hold: HoldId, cause: Cause, at: Timestamp) -> Result<Entry, BookError> {
        self.expect(hold, "Released", false)?;
        Ok(self.entry(at, Fact::Released { hold, cause }))
    }

    /// Builds the entry that makes a hold under way unknown.
    ///
    /// # Errors
    /// The hold is not under way.
    pub fn forfeit(&self, hold: HoldId, cause: Cause, at: Timestamp) -> Result<Entry, BookError> {
        self.expect(hold, "Forfeited", false)?;
        Ok(self.entry(at, Fact::Forfeited { hold, cause }))
    }

    /// Builds the entry that closes an unknown hold.
    ///
    /// # Errors
    /// The hold is not unknown.
    pub fn resolve(
        &self,
        hold: HoldId,
        billed: bool,
        why: String,
        at: Timestamp,
    ) -> Result<Entry, BookError> {
        self.expect(hold, "Resolved", true)?;
        Ok(self.entry(at, Fact::Resolved { hold, billed, why }))
    }

    /// Builds the entry that forgets the answers under a key.
    ///
    /// # Errors
    /// There is none, or somebody asks it just now.
    pub fn forget(&self, key: QueryKey, why: String, at: Timestamp) -> Result<Entry, BookError> {
        self.forgettable(&key)?;
        Ok(self.entry(at, Fact::Forgotten { key, why }))
    }

    /// Builds the entry that sets a budget; none where that changes nothing, or where the configuration says what it
    /// said when it was last applied.
    pub fn limit(&self, budget: Budget, origin: Origin, at: Timestamp) -> Option<Entry> {
        let kept = self.budgets.get(&budget.name);
        let same = match origin {
            Origin::Config => kept.and_then(|kept| kept.configured.as_ref()) == Some(&budget),
            Origin::Command => kept.map(|kept| &kept.budget) == Some(&budget),
        };
        (!same).then(|| self.entry(at, Fact::Limited { budget, origin }))
    }

    /// Builds the entry that records a price; none where it is recorded.
    pub fn price(&self, price: Price, at: Timestamp) -> Option<Entry> {
        let digest = price.digest();
        (!self.prices.contains_key(&digest)).then(|| self.entry(at, Fact::Priced { digest, price }))
    }

    /// Builds the entry that counts items served without a call.
    pub fn served(&self, tallies: Vec<Tally>, at: Timestamp) -> Entry {
        self.entry(at, Fact::Served { tallies })
    }

    /// Builds the entry that says who took ownership.
    pub fn opened(&self, program: String, at: Timestamp) -> Entry {
        self.entry(at, Fact::Opened { program })
    }

    /// Builds the end mark.
    pub fn closed(&self, at: Timestamp) -> Entry {
        self.entry(at, Fact::Closed)
    }

    /// Adds an entry to the present; where it contradicts the book, nothing changes.
    ///
    /// # Errors
    /// The contradiction.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), BookError> {
        if entry.at < self.last_at {
            return Err(BookError::Backwards { found: entry.at, last: self.last_at });
        }
        match &entry.fact {
            Fact::Reserved { hold, exchange, amount, price, metered, .. } => {
                let made = Hold {
                    at: entry.at,
                    exchange: exchange.clone(),
                    amount: *amount,
                    price: price.clone(),
                    metered: *metered,
                    unknown: None,
                };
                self.apply_reserved(*hold, made)?;
            }
            Fact::Settled { hold, fee, items, .. } => {
                let open = self.open(*hold, "Settled")?;
                if !items.iter().map(|item| item.key).eq(open.exchange.items.iter().map(|item| item.key)) {
                    return Err(BookError::OtherItems(*hold));
                }
                self.close(*hold, "Settled", Some((Part::Settled, *fee)))?;
                self.answered.extend(items.iter().map(|item| item.key));
            }
            Fact::Released { hold, .. } => {
                self.expect(*hold, "Released", false)?;
                self.close(*hold, "Released", None)?;
            }
            Fact::Forfeited { hold, cause } => self.apply_forfeited(*hold, cause)?,
            Fact::Resolved { hold, billed, .. } => {
                let amount = self.expect(*hold, "Resolved", true)?.amount;
                self.close(*hold, "Resolved", billed.then_some((Part::Settled, amount)))?;
            }
            Fact::Limited { budget, origin } => self.apply_limited(entry.at, budget, *origin)?,
            Fact::Priced { digest, price } => {
                self.prices.insert(digest.clone(), price.clone());
            }
            Fact::Forgotten { key, .. } => {
                self.forgettable(key)?;
                self.answered.remove(key);
            }
            Fact::Served { tallies } => self.apply_served(tallies)?,
            Fact::Opened { .. } | Fact::Closed => {}
        }
        self.last_at = entry.at;
        Ok(())
    }

    /// Everything but which keys are answered, which only grows: what [`Book::back_to`] goes back to.
    pub(crate) fn mark(&self) -> Self {
        Self {
            budgets: self.budgets.clone(),
            parties: self.parties.clone(),
            total: self.total,
            holds: self.holds.clone(),
            in_flight: self.in_flight.clone(),
            answered: HashSet::new(),
            prices: self.prices.clone(),
            known: self.known,
            followed: self.followed,
            saved: self.saved,
            last_hold: self.last_hold,
            last_at: self.last_at,
        }
    }

    /// Undoes what was applied since `mark`; `answered` are the keys that were first answered since.
    pub(crate) fn back_to(&mut self, mark: Self, answered: &[QueryKey], forgotten: &[QueryKey]) {
        let mut kept = std::mem::take(&mut self.answered);
        kept.extend(forgotten);
        answered.iter().for_each(|key| _ = kept.remove(key));
        *self = Self { answered: kept, ..mark };
    }

    /// What a hold under way or unknown asks.
    pub fn exchange(&self, hold: HoldId) -> Option<&Exchange> {
        self.holds.get(&hold).map(|hold| &hold.exchange)
    }

    /// The holds under way: after a crash, nobody knows what came of them.
    pub fn under_way(&self) -> Vec<HoldId> {
        self.holds.iter().filter(|(_, hold)| hold.unknown.is_none()).map(|(id, _)| *id).collect()
    }

    /// Whether an answer to `key` is in the record.
    pub fn is_settled(&self, key: &QueryKey) -> bool {
        self.answered.contains(key)
    }

    /// Whether somebody is asking `key` now.
    pub fn is_in_flight(&self, key: &QueryKey) -> bool {
        self.in_flight.contains_key(key)
    }

    /// The figures at `at`, or at the last entry where that is later.
    pub fn present(&self, at: Timestamp) -> Present {
        let at = at.max(self.last_at);
        let open = |(id, hold): (&HoldId, &Hold)| OpenHold {
            hold: *id,
            at: hold.at,
            who: hold.exchange.who.clone(),
            model: hold.exchange.model.clone(),
            keys: hold.exchange.items.iter().map(|item| item.key).collect(),
            amount: hold.amount,
            unknown: hold.unknown.clone(),
        };
        let in_force = self.budgets.values().filter(|kept| !kept.budget.limit.is_lifted());
        Present {
            total: self.total,
            budgets: in_force.map(|kept| (kept.budget.clone(), kept.at(at))).collect(),
            open: self.holds.iter().map(open).collect(),
            known: self.known,
            followed: self.followed,
            saved: self.saved,
            answers: self.answered.len() as u64,
            unwritable: None,
        }
    }

    fn entry(&self, at: Timestamp, fact: Fact) -> Entry {
        Entry { at: at.max(self.last_at), fact }
    }

    fn covering(&self, who: &Who) -> impl Iterator<Item = &Kept> {
        self.budgets.values().filter(|kept| !kept.budget.limit.is_lifted() && kept.budget.scope.covers(who))
    }

    fn open(&self, hold: HoldId, fact: &'static str) -> Result<&Hold, BookError> {
        self.holds.get(&hold).ok_or(BookError::NotOpen { hold, fact })
    }

    fn expect(&self, hold: HoldId, fact: &'static str, unknown: bool) -> Result<&Hold, BookError> {
        let open = self.open(hold, fact)?;
        if open.unknown.is_some() == unknown {
            Ok(open)
        } else {
            Err(BookError::WrongState { hold, state: open.state(), fact })
        }
    }

    fn apply_reserved(&mut self, id: HoldId, hold: Hold) -> Result<(), BookError> {
        let expected = HoldId(self.last_hold + 1);
        if id != expected {
            return Err(BookError::OutOfOrder { found: id, expected });
        }
        let keys: BTreeSet<_> = hold.exchange.items.iter().map(|item| item.key).collect();
        let distinct = keys.len() == hold.exchange.items.len() && !keys.is_empty();
        if !distinct || keys.iter().any(|key| self.in_flight.contains_key(key)) {
            return Err(BookError::Items(id));
        }
        self.shift(&hold.exchange.who, hold.at, None, Some((Part::Reserved, hold.amount)))?;
        // After this point it must succeed.
        self.in_flight.extend(keys.into_iter().map(|key| (key, id)));
        self.holds.insert(id, hold);
        self.last_hold = id.0;
        Ok(())
    }

    fn forgettable(&self, key: &QueryKey) -> Result<(), BookError> {
        if self.in_flight.contains_key(key) {
            return Err(BookError::BeingAsked(*key));
        }
        if self.answered.contains(key) { Ok(()) } else { Err(BookError::NotAnswered(*key)) }
    }

    fn apply_forfeited(&mut self, id: HoldId, cause: &Cause) -> Result<(), BookError> {
        let open = self.expect(id, "Forfeited", false)?;
        let (who, made, amount) = (open.exchange.who.clone(), open.at, open.amount);
        self.shift(&who, made, Some((Part::Reserved, amount)), Some((Part::Unknown, amount)))?;
        // After this point it must succeed.
        self.in_flight.retain(|_, holder| *holder != id);
        self.holds.get_mut(&id).expect("it was open").unknown = Some(cause.clone());
        Ok(())
    }

    /// Ends an open hold and counts what it came to.
    fn close(&mut self, id: HoldId, fact: &'static str, to: Option<(Part, Amount)>) -> Result<(), BookError> {
        let open = self.open(id, fact)?;
        let (who, made, from) = (open.exchange.who.clone(), open.at, (open.part(), open.amount));
        self.shift(&who, made, Some(from), to)?;
        // After this point it must succeed.
        let ended = self.holds.remove(&id).expect("it was open");
        for item in &ended.exchange.items {
            if self.in_flight.get(&item.key) == Some(&id) {
                self.in_flight.remove(&item.key);
            }
        }
        Ok(())
    }

    fn apply_limited(&mut self, at: Timestamp, budget: &Budget, origin: Origin) -> Result<(), BookError> {
        let start = budget.window.start(at);
        let mut standing = Standing::default();
        for (_, party) in self.parties.iter().filter(|(who, _)| budget.scope.covers(who)) {
            standing = add(standing, &party.at(budget.window, start)).ok_or(BookError::Overflow)?;
        }
        let standing = Windowed { start, standing };
        let configured = match origin {
            Origin::Config => Some(budget.clone()),
            Origin::Command => self.budgets.get(&budget.name).and_then(|kept| kept.configured.clone()),
        };
        self.budgets.insert(budget.name.clone(), Kept { budget: budget.clone(), configured, standing });
        Ok(())
    }

    fn apply_served(&mut self, tallies: &[Tally]) -> Result<(), BookError> {
        let (mut known, mut followed, mut saved) = (self.known, self.followed, self.saved);
        for tally in tallies {
            known = known.checked_add(tally.known).ok_or(BookError::Overflow)?;
            followed = followed.checked_add(tally.followed).ok_or(BookError::Overflow)?;
            saved = saved.checked_add(tally.saved).ok_or(BookError::Overflow)?;
        }
        (self.known, self.followed, self.saved) = (known, followed, saved);
        Ok(())
    }

    /// Moves an amount of a hold made at `made` between parts of every standing that counts calls of `who`: in all of
    /// them, or in none.
    fn shift(
        &mut self,
        who: &Who,
        made: Timestamp,
        from: Option<(Part, Amount)>,
        to: Option<(Part, Amount)>,
    ) -> Result<(), BookError> {
        let total = moved(self.total, from, to).ok_or(BookError::Overflow)?;
        let party = self.parties.get(who).unwrap_or(&Party::default()).moved(made, from, to)?;
        let mut budgets = Vec::new();
        for (name, kept) in self.budgets.iter().filter(|(_, kept)| kept.budget.scope.covers(who)) {
            let start = kept.budget.window.start(made);
            budgets.push((name.clone(), kept.standing.moved(start, from, to)?));
        }
        // After this point it must succeed.
        self.total = total;
        self.parties.insert(who.clone(), party);
        for (name, standing) in budgets {
            self.budgets.get_mut(&name).expect("it was there").standing = standing;
        }
        Ok(())
    }
}

fn moved(
    mut standing: Standing,
    from: Option<(Part, Amount)>,
    to: Option<(Part, Amount)>,
) -> Option<Standing> {
    fn part(standing: &mut Standing, part: Part) -> &mut Amount {
        match part {
            Part::Settled => &mut standing.settled,
            Part::Reserved => &mut standing.reserved,
            Part::Unknown => &mut standing.unknown,
        }
    }
    if let Some((name, amount)) = from {
        let place = part(&mut standing, name);
        *place = place.checked_sub(amount)?;
    }
    if let Some((name, amount)) = to {
        let place = part(&mut standing, name);
        *place = place.checked_add(amount)?;
    }
    Some(standing)
}

fn add(left: Standing, right: &Standing) -> Option<Standing> {
    Some(Standing {
        settled: left.settled.checked_add(right.settled)?,
        reserved: left.reserved.checked_add(right.reserved)?,
        unknown: left.unknown.checked_add(right.unknown)?,
    })
}

impl Present {
    /// Dollars saved by answers that were not bought again.
    pub fn saved_usd(&self) -> Usd {
        self.saved.usd
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Limit, Scope, Window};
    use crate::entry::HeldItem;

    fn key(number: u8) -> QueryKey {
        QueryKey::from_bytes([number; 32])
    }

    fn claim(keys: &[u8]) -> Claim {
        let held = |number: &u8| HeldItem { key: key(*number), sample: 0, calls: 1 };
        Claim {
            exchange: Exchange {
                who: Who { teacher: "t".into(), run: None, key: None },
                dialect: "d".into(),
                operation: "o".into(),
                revision: String::new(),
                model: "m".into(),
                headers: BTreeMap::new(),
                items: keys.iter().map(held).collect(),
                refresh: false,
            },
            quote: Quote {
                calls: keys.len() as u64,
                tokens: Ok(0),
                usd: Ok(Usd::ZERO),
                price: None,
                metered: false,
            },
            unbudgeted: true,
        }
    }

    fn book(steps: &[&str]) -> Result<Book, BookError> {
        let mut book = Book::default();
        let mut keys = 0;
        for step in steps {
            let at = Timestamp(1);
            let entry = match *step {
                "reserve" => {
                    keys += 1;
                    book.reserve(&claim(&[keys]), at).unwrap()
                }
                "settle" => book.settle(HoldId(1), None, String::new(), at)?,
                "release" => book.release(HoldId(1), Cause::NotConnected, at)?,
                "forfeit" => book.forfeit(HoldId(1), Cause::TimedOut, at)?,
                "billed" => book.resolve(HoldId(1), true, String::new(), at)?,
                "free" => book.resolve(HoldId(1), false, String::new(), at)?,
                "forget" => book.forget(key(1), String::new(), at)?,
                other => panic!("{other}"),
            };
            book.apply(&entry)?;
        }
        Ok(book)
    }

    #[test]
    fn the_state_table_holds() {
        #[track_caller]
        fn check(before: &[&str], allowed: &[(&str, (u64, u64, u64), bool)]) {
            for fact in ["settle", "release", "forfeit", "billed", "free"] {
                let steps = [before, &[fact]].concat();
                let found = book(&steps).ok().map(|book| {
                    let Standing { settled, reserved, unknown } = book.total;
                    ((settled.calls, reserved.calls, unknown.calls), book.is_settled(&key(1)))
                });
                let expected =
                    allowed.iter().find(|(name, ..)| *name == fact).map(|(_, sums, known)| (*sums, *known));
                assert_eq!(found, expected, "{steps:?}");
            }
        }
        check(&[], &[]);
        let from_way =
            [("settle", (1, 0, 0), true), ("release", (0, 0, 0), false), ("forfeit", (0, 0, 1), false)];
        check(&["reserve"], &from_way);
        let from_unknown =
            [("settle", (1, 0, 0), true), ("billed", (1, 0, 0), false), ("free", (0, 0, 0), false)];
        check(&["reserve", "forfeit"], &from_unknown);
        for end in [
            &["settle"][..],
            &["release"],
            &["forfeit", "settle"],
            &["forfeit", "billed"],
            &["forfeit", "free"],
        ] {
            check(&[&["reserve"], end].concat(), &[]);
        }
    }

    #[test]
    fn a_key_is_never_held_twice() {
        let reserve = |book: &Book, claim: &Claim| book.reserve(claim, Timestamp(1)).map(|_| ());
        let under_way = book(&["reserve"]).unwrap();
        assert_eq!(reserve(&under_way, &claim(&[1, 2])), Err(NotReserved::InFlight(vec![key(1)])));
        let settled = book(&["reserve", "settle"]).unwrap();
        assert_eq!(reserve(&settled, &claim(&[2, 1])), Err(NotReserved::Known(vec![key(1)])));
        let mut again = claim(&[1]);
        again.exchange.refresh = true;
        assert_eq!(reserve(&settled, &again), Ok(()));
        assert_eq!(reserve(&under_way, &again), Err(NotReserved::InFlight(vec![key(1)])));
        let unknown = book(&["reserve", "forfeit"]).unwrap();
        assert_eq!(reserve(&unknown, &claim(&[1])), Ok(()));
    }

    #[test]
    fn what_is_forgotten_may_be_bought_anew_and_its_money_stays() {
        let before = book(&["reserve", "settle"]).unwrap().present(Timestamp(0));
        let forgotten = book(&["reserve", "settle", "forget"]).unwrap();
        let after = forgotten.present(Timestamp(0));
        assert_eq!((after.total, after.answers), (before.total, 0));
        assert!(forgotten.reserve(&claim(&[1]), Timestamp(1)).is_ok());
        assert_eq!(book(&["forget"]).unwrap_err(), BookError::NotAnswered(key(1)));
        assert_eq!(
            book(&["reserve", "settle", "forget", "forget"]).unwrap_err(),
            BookError::NotAnswered(key(1))
        );
        assert_eq!(book(&["reserve", "forget"]).unwrap_err(), BookError::BeingAsked(key(1)));
        // Forfeited, then settled late: an answer like any other.
        assert!(book(&["reserve", "forfeit", "settle", "forget"]).is_ok());
    }

    #[test]
    fn a_limit_from_the_configuration_is_applied_when_it_changes() {
        let budget = |calls| Budget {
            name: "b".into(),
            scope: Scope::default(),
            limit: Limit { calls: Some(calls), ..Limit::default() },
            window: Window::Forever,
        };
        let mut book = book(&["reserve", "settle"]).unwrap();
        let mut set = |calls, origin| {
            let entry = book.limit(budget(calls), origin, Timestamp(2));
            if let Some(entry) = &entry {
                book.apply(entry).unwrap();
            }
            let present = book.present(Timestamp(0));
            assert_eq!(present.budgets[0].1.settled.calls, 1);
            (entry.is_some(), present.budgets[0].0.limit.calls)
        };
        assert_eq!(set(5, Origin::Config), (true, Some(5)));
        assert_eq!(set(5, Origin::Config), (false, Some(5)));
        assert_eq!(set(9, Origin::Command), (true, Some(9)));
        assert_eq!(set(5, Origin::Config), (false, Some(9)));
        assert_eq!(set(6, Origin::Config), (true, Some(6)));
    }

    #[test]
    fn a_hold_counts_in_the_window_in_which_it_was_made() {
        let at = |text: &str, hour: u64| Timestamp(text.parse::<Day>().unwrap().start().0 + hour * 3_600_000);
        let (monday, tuesday, december) = (at("2026-11-30", 23), at("2026-12-01", 1), at("2026-12-31", 9));
        let budget = |name: &str, calls, window| Budget {
            name: name.into(),
            scope: Scope::default(),
            limit: Limit { calls: Some(calls), ..Limit::default() },
            window,
        };
        let mut book = Book::default();
        let set = |book: &mut Book, budget, at| {
            let entry = book.limit(budget, Origin::Command, at).unwrap();
            book.apply(&entry).unwrap();
        };
        set(&mut book, budget("day", 1, Window::Day), monday);
        set(&mut book, budget("month", 2, Window::Month), monday);
        let hold = |book: &mut Book, number, at| {
            let entry = book.reserve(&claim(&[number]), at).map_err(|refused| refused.to_string())?;
            book.apply(&entry).map_err(|error| error.to_string())
        };
        let calls = |book: &Book, at| {
            let calls = |(budget, standing): (Budget, Standing)| {
                let Standing { settled, reserved, unknown } = standing;
                (budget.name, (settled.calls, reserved.calls, unknown.calls))
            };
            book.present(at).budgets.into_iter().map(calls).collect::<BTreeMap<_, _>>()
        };
        let figures = |day, month| BTreeMap::from([("day".to_owned(), day), ("month".to_owned(), month)]);
        hold(&mut book, 1, monday).unwrap();
        let refused = hold(&mut book, 2, monday).unwrap_err();
        assert!(refused.starts_with(
            "budget `day` is exhausted for today (UTC): limit 1 calls, settled 0 calls, held 1"
        ));
        assert_eq!(calls(&book, monday), figures((0, 1, 0), (0, 1, 0)));
        // Another day and another month, though nothing was recorded in them: all is left.
        assert_eq!(calls(&book, tuesday), figures((0, 0, 0), (0, 0, 0)));
        hold(&mut book, 2, tuesday).unwrap();
        // Monday's call settles on Tuesday, and counts on Monday.
        let settled = book.settle(HoldId(1), None, String::new(), tuesday).unwrap();
        book.apply(&settled).unwrap();
        assert_eq!(calls(&book, tuesday), figures((0, 1, 0), (0, 1, 0)));
        hold(&mut book, 3, december).unwrap();
        let unknown = book.forfeit(HoldId(3), Cause::TimedOut, december).unwrap();
        book.apply(&unknown).unwrap();
        assert_eq!(calls(&book, december), figures((0, 0, 1), (0, 1, 1)));
        assert!(hold(&mut book, 4, december).unwrap_err().contains("`day`"));
        // Time does not run backwards: a clock that was set back makes no new yesterday.
        assert!(hold(&mut book, 4, monday).unwrap_err().contains("`day`"));
        // A limit that is set later counts what its window has seen.
        set(&mut book, budget("late", 9, Window::Month), december);
        assert_eq!(calls(&book, december)["late"], (0, 1, 1));
        assert_eq!(book.total.settled.calls + book.total.reserved.calls + book.total.unknown.calls, 3);
    }

    #[test]
    fn what_contradicts_the_book_changes_nothing() {
        let mut book = book(&["reserve"]).unwrap();
        let before = book.present(Timestamp(0));
        let other = Book::default();
        let mut later = book.entry(Timestamp(0), Fact::Closed);
        later.at = Timestamp(0);
        assert!(matches!(book.apply(&later), Err(BookError::Backwards { .. })));
        let first = other.reserve(&claim(&[9]), Timestamp(5)).unwrap();
        assert!(matches!(book.apply(&first), Err(BookError::OutOfOrder { .. })));
        let foreign = Fact::Settled {
            hold: HoldId(1),
            usage: None,
            fee: Amount::ZERO,
            whole_hold: false,
            media: String::new(),
            items: vec![],
        };
        assert_eq!(
            book.apply(&Entry { at: Timestamp(5), fact: foreign }),
            Err(BookError::OtherItems(HoldId(1)))
        );
        assert_eq!(book.present(Timestamp(0)), before);
    }

    #[test]
    fn no_budget_refuses_unless_that_is_allowed() {
        let strict = Claim { unbudgeted: false, ..claim(&[1]) };
        let refused = Book::default().reserve(&strict, Timestamp(1)).unwrap_err();
        assert_eq!(refused.to_string(), "no budget covers a call to teacher `t`, and `unbudgeted` is false");
    }
}

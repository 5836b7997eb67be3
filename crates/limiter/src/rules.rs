//! The arithmetic: what one call may grant. Pure: state in, state and dates out, `now` as an argument.
//!
//! This is the reference that the files of `script/` repeat step by step, and the embedded limiter itself. Every number is a
//! whole microsecond or a whole token below 2⁵³.
//!
//! **Buckets** are GCRA: `tat` is when the bucket will be full again at the latest. A head of cost `c` goes at
//! `F = max(now, tat + (need − burst) · T)` with `need = min(c + reserve, burst)` (no reserve for critical), and then
//! moves `tat` to `max(tat, date) + c · T`. So a cost above the burst is granted from a full bucket and leaves a debt.
//! A bucket nobody remembers counts as empty when the state began (`epoch`), so an emptied server grants no burst twice.
//!
//! **Windows** (quotas) count what was granted by slots of a 200th of their length; a head goes when everything granted
//! in the last 201 slots leaves room for it and the reserve, see `window`. **Slots** are calls at a time: a head takes
//! one where any is free, see `leases`. Both take part in everything below, slots with two exceptions: who waits there
//! is who was denied, and nobody takes one out of turn, because there is no looking ahead that would serve others first.
//!
//! **Dates** reach up to 100 ms ahead for critical and as far as the reserve can hide for the others, so that
//! one call serves many heads and critical mail still finds tokens at once.
//!
//! **Turns.** Each class has a virtual clock (`tag`) at each bucket that advances by cost × {3, 8, 24}; a class that
//! is more than a lead ahead of another waiting class waits its turn, unless the tokens would go to waste. Critical
//! goes first everywhere. At the account, destinations of one class take turns likewise, and accounts at a limit they
//! share. Waiting is remembered by
//! `active` until-times, so it holds across workers.
//!
//! Turns of some weight move on by cost ÷ weight.
//!
//! **What is in force** at a bucket is the newest that any worker has said of it, see `said`: configured numbers of the
//! newest generation, changes of the latest date. A bucket may be closed: then it gives nothing that is dated earlier than
//! its opening, and nobody takes turns for it. A rate that gets faster does so after its latest grant, a slower one at once.
//!
//! **Tickets** let a large message, once it has waited, hold a bucket until it has saved up enough.
//!
//! **The gap rule** keeps a slow bucket from dating a shared one (the account, a fleet limit) far into the future,
//! unless accounts compete for the slow one.

mod call;
mod lane;
mod leases;
mod said;
mod state;
mod window;

#[cfg(test)]
pub(crate) use self::call::tell_state;
pub use self::{
    call::{charge, decide, tell},
    state::State,
};

/// Furthest date of a critical head, and of any head where the reserve allows.
const HORIZON_US: u64 = crate::GRANT_LIFE_US;
/// Out of turn, nobody is dated further ahead than this.
const OUT_OF_TURN_US: u64 = 20_000;
/// How far a class (twice this) or destination may run ahead of the others.
const LEAD_US: u64 = 50_000;
/// How long after its next retry a waiting lane still counts as waiting.
const ACTIVE_US: u64 = 250_000;
/// How long a head waits before it may take a ticket; critical takes it at once.
const PATIENCE_US: u64 = 100_000;
/// Calls of one worker are this far apart.
const GAP_US: u64 = crate::CALL_GAP_US;
/// What stands is not written again for less than this: saves writes.
const MARK_STEP_US: u64 = 5 * GAP_US;
/// Where all slots are taken, mail other than critical asks so often; critical does at every call.
const POLL_US: u64 = 2 * GAP_US;
/// A lane that rests asks again after no longer than this.
const REST_US: u64 = 60_000_000;
/// A window whose past is lost may be told it any moment. A state younger than the first is asked again after the second,
/// since those who remember come back; an older one after the third.
const RETURN_US: u64 = 15_000_000;
const SOON_US: u64 = 1_000_000;
const LATER_US: u64 = 15_000_000;
/// What was said of a bucket besides its configuration holds for so long, unless it is said again.
const STAND_US: u64 = 180_000_000;
/// A shared bucket may always be dated this far ahead.
const SLACK_US: u64 = 2_000;
/// What one token advances the virtual clock of high, normal and low: shares 8 : 3 : 1.
const WEIGHT: [u64; 3] = [3, 8, 24];
/// What one token advances a turn of weight 1.
const TURN: u64 = 1_000;
/// A bucket is remembered for so long after it is full again.
const KEEP_US: u64 = 10_000_000;
/// A destination nobody waits for is forgotten so long after.
const FORGET_US: u64 = 1_000_000;

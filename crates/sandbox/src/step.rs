//! What to do with a request, in one word, and sequences of such words: the language of addresses and scenarios.

use std::time::Duration;

use crate::duration;

/// One way of treating a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// `accept`
    Accept,
    /// `503`: that status, with the body that the API has for it.
    Status(u16),
    /// `throttle`, `throttle-5s`: the API's own way to say "too fast".
    Throttle(Option<Duration>),
    /// `reject`: the API's own way to say that this recipient is at fault.
    Reject,
    /// `hang`, `hang-2s`: no answer, for ever, or until the connection is closed after so long.
    Hang(Option<Duration>),
    /// `drop`: the connection is closed after the request was read.
    Drop,
    /// `drop-unread`: the connection is closed before the body is read.
    DropUnread,
    /// `delay-250ms`: accepted, but later.
    Delay(Duration),
    /// `slow-2s`: accepted, with a body that trickles for so long.
    Slow(Duration),
    /// `answer`: the rule's own answer.
    Answer,
}

impl Step {
    fn parse(text: &str) -> Option<Step> {
        let (word, argument) = match text.split_once('-') {
            Some((word, argument)) => (word, Some(argument)),
            None => (text, None),
        };
        let time = argument.map(duration::parse);
        Some(match (word, time) {
            ("accept", None) => Step::Accept,
            ("answer", None) => Step::Answer,
            ("reject", None) => Step::Reject,
            ("unavailable", None) => Step::Status(503),
            ("drop", None) => Step::Drop,
            ("drop", Some(None)) if argument == Some("unread") => Step::DropUnread,
            ("throttle", None) => Step::Throttle(None),
            ("throttle", Some(Some(wait))) => Step::Throttle(Some(wait)),
            ("hang", None) => Step::Hang(None),
            ("hang", Some(Some(time))) => Step::Hang(Some(time)),
            ("delay", Some(Some(time))) => Step::Delay(time),
            ("slow", Some(Some(time))) => Step::Slow(time),
            (status, None) if status.len() == 3 => match status.parse().ok()? {
                status @ 200..=599 => Step::Status(status),
                _ => return None,
            },
            _ => return None,
        })
    }
}

/// Steps for the first attempt, the second, and so on.
///
/// Each stands for one attempt, or for n when written `503x2`. A last step without a count stands for all that follow;
/// after a last one with a count come acceptances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sequence(Vec<(Step, Option<u32>)>);

impl Sequence {
    /// # Errors
    /// The first word that is no step.
    pub(crate) fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Sequence, &'a str> {
        words.into_iter().map(|word| counted(word).ok_or(word)).collect::<Result<Vec<_>, _>>().map(Sequence)
    }

    pub(crate) fn always(step: Step) -> Sequence {
        Sequence(vec![(step, None)])
    }

    /// Of `sandbox+503x2+_label@…`: the local part says what to do. Words after one that begins with `_` are labels.
    /// `None` where the address is no such one; `Err` with the word that is no step.
    pub(crate) fn of_address(address: &str) -> Option<Result<Sequence, &str>> {
        let (local, _) = address.rsplit_once('@')?;
        let words = local.strip_prefix("sandbox+")?;
        let mut steps = words.split('+').take_while(|w| !w.starts_with('_')).peekable();
        steps.peek()?;
        Some(Sequence::parse(steps))
    }

    /// The step for the nth attempt, from 1.
    pub(crate) fn at(&self, attempt: u32) -> Step {
        let mut left = attempt.max(1);
        for (i, (step, count)) in self.0.iter().enumerate() {
            let forever = count.is_none() && i + 1 == self.0.len();
            let count = count.unwrap_or(1);
            if forever || left <= count {
                return *step;
            }
            left -= count;
        }
        Step::Accept
    }

    /// Whether it matters how often a message came.
    pub(crate) fn counts(&self) -> bool {
        !matches!(self.0.as_slice(), [(_, None)])
    }

    pub(crate) fn steps(&self) -> impl Iterator<Item = Step> {
        self.0.iter().map(|(step, _)| *step)
    }

    /// The first step so many times, then acceptance; `None` where it is no single uncounted step.
    pub(crate) fn times(&self, n: u32) -> Option<Sequence> {
        (!self.counts()).then(|| Sequence(vec![(self.0[0].0, Some(n))]))
    }
}

fn counted(word: &str) -> Option<(Step, Option<u32>)> {
    if let Some((step, count)) = word.rsplit_once('x')
        && let (Some(step), Ok(count @ 1..=1_000_000)) = (Step::parse(step), count.parse())
    {
        return Some((step, Some(count)));
    }
    Some((Step::parse(word)?, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(address: &str, n: u32) -> Vec<Step> {
        let sequence = Sequence::of_address(address).unwrap().unwrap();
        (1..=n).map(|i| sequence.at(i)).collect()
    }

    #[test]
    fn sequences() {
        use Step::{Accept, Drop, Hang, Status, Throttle};
        let s = Duration::from_secs;
        for (local, want) in [
            ("503", vec![Status(503); 4]),
            ("503x2", vec![Status(503), Status(503), Accept, Accept]),
            ("503+accept", vec![Status(503), Accept, Accept, Accept]),
            ("503x2+throttle-5s+drop", vec![Status(503), Status(503), Throttle(Some(s(5))), Drop]),
            ("hang-2sx2+_x2+503", vec![Hang(Some(s(2))), Hang(Some(s(2))), Accept, Accept]),
            ("unavailable+_u17", vec![Status(503); 4]),
        ] {
            assert_eq!(first(&format!("sandbox+{local}@x.org"), 4), want, "{local}");
        }
    }

    #[test]
    fn other_addresses_and_mistakes() {
        for plain in ["u@x.org", "sandbox@x.org", "sandbox", "sandbox+_only-a-label@x.org", ""] {
            assert!(Sequence::of_address(plain).is_none(), "{plain}");
        }
        for (bad, word) in [
            ("sandbox+hagn@x.org", "hagn"),
            ("sandbox+503+99@x.org", "99"),
            ("sandbox+700@x.org", "700"),
            ("sandbox+503x0@x.org", "503x0"),
            ("sandbox+delay@x.org", "delay"),
            ("sandbox+hang-2h@x.org", "hang-2h"),
            ("sandbox++503@x.org", ""),
        ] {
            assert_eq!(Sequence::of_address(bad), Some(Err(word)), "{bad}");
        }
    }
}

//! One measured run: the lanes are filled, then one client empties them.

use std::{collections::HashMap, fmt, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use paceline_broker::{Outgoing, Properties, Purpose, Route};
use paceline_testkit::Process;
use tokio::time::{Instant, sleep};

use crate::{
    Failure,
    cpu::{Cpu, Who},
    mail::Mix,
    stage::{Arrival, Stage},
};

/// How often the sandbox is asked for its counts.
const POLL: Duration = Duration::from_millis(50);
/// A client that has carried nothing new for so long has come to a halt.
const HALT: Duration = Duration::from_secs(30);
/// How long a client may take to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Publishes under way at a time while the lanes are filled.
const PUBLISHES: usize = 1000;

/// Who carries the mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    Bare,
    Worker,
    /// One worker on embedded parts: no RabbitMQ, Redis or PostgreSQL.
    Embedded,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Client::Bare => "bare",
            Client::Worker => "worker",
            Client::Embedded => "embedded",
        })
    }
}

impl Client {
    /// The name of a daemon's log.
    pub(crate) fn log(self) -> &'static str {
        match self {
            Client::Embedded => "embedded",
            Client::Bare | Client::Worker => "worker",
        }
    }
}

/// What a run is of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) client: Client,
    pub(crate) mix: Mix,
    pub(crate) messages: u32,
    /// Tells its messages from those of every other run.
    pub(crate) number: u32,
}

/// What one run came to.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) client: Client,
    /// From the first arrival at the sandbox to the last.
    pub(crate) seconds: f64,
    /// Messages a second in that time.
    pub(crate) rate: f64,
    /// µs of processor time a message, between two looks close to the first and the last arrival.
    pub(crate) cpu_us: [f64; Who::ALL.len()],
    /// Average length of a request's body.
    pub(crate) request_bytes: f64,
    pub(crate) exact: Exact,
}

/// Whether each message arrived exactly once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Exact {
    pub(crate) missing: usize,
    pub(crate) repeated: usize,
    /// Arrived and was not accepted, or was never published.
    pub(crate) odd: usize,
    /// Left in the lanes at the end.
    pub(crate) left: u64,
}

impl Exact {
    /// Nothing lost, nothing twice.
    pub(crate) fn holds(&self) -> bool {
        *self == Exact::default()
    }
}

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exact { missing, repeated, odd, left } = self;
        if self.holds() { f.pad("yes") } else { write!(f, "{missing} missing, {repeated} repeated, {odd} odd, {left} left") }
    }
}

impl Run {
    /// Fills the lanes, lets the client empty them, and looks at what arrived. `watch` is called with the client's
    /// process id once the first messages have arrived; what it returns is kept until the last one has.
    ///
    /// # Errors
    /// A service failed, or the client came to a halt.
    pub(crate) async fn measure<W>(
        stage: &Stage,
        plan: Plan,
        watch: impl FnOnce(u32) -> Result<W, Failure>,
    ) -> Result<Run, Failure> {
        stage.reset_sandbox().await?;
        let control = (plan.client == Client::Worker).then(|| stage.daemon("control"));
        fill(stage, plan).await?;
        let mut client = match plan.client {
            Client::Bare => stage.bare(plan.mix, plan.messages),
            Client::Worker | Client::Embedded => stage.daemon(plan.client.log()),
        };
        let carried = carry(stage, plan, &mut client, watch).await;
        let (messages, cpu) = carried.map_err(|error| describe(stage, &client, plan.client, &error))?;
        let left = end(stage, plan, &mut client, control).await;
        let arrivals = stage.arrivals().await?;
        let exact = exactness(plan, &arrivals, left);
        let times = || arrivals.iter().map(|arrival| arrival.at_us);
        let took_us = times().max().unwrap_or_default().saturating_sub(times().min().unwrap_or_default()).max(1);
        let seconds = took_us as f64 / 1e6;
        Ok(Run {
            client: plan.client,
            seconds,
            rate: arrivals.len().saturating_sub(1) as f64 / seconds,
            cpu_us: Who::ALL.map(|who| cpu[who] as f64 / messages as f64),
            request_bytes: arrivals.iter().map(|arrival| arrival.bytes as f64).sum::<f64>() / arrivals.len().max(1) as f64,
            exact,
        })
    }
}

/// Publishes every message of the run and waits until the broker has settled down.
async fn fill(stage: &Stage, plan: Plan) -> Result<(), Failure> {
    let publish = |n| {
        let mail = plan.mix.mail(plan.number, n);
        let body = match plan.client {
            Client::Bare => mail.request(stage.api),
            Client::Worker | Client::Embedded => mail.message(),
        };
        stage.broker(plan.client).publish(Outgoing {
            to: Route::Producers,
            key: mail.routing_key(),
            body: body.into(),
            properties: Properties::default(),
            purpose: Purpose::Submit,
        })
    };
    stream::iter(0..plan.messages).map(publish).buffer_unordered(PUBLISHES).try_collect::<()>().await?;
    let depth = stage.depth(plan).await;
    if depth != u64::from(plan.messages) {
        return Err(format!("{} messages were published and the lanes hold {depth}", plan.messages).into());
    }
    stage.quiet().await
}

/// Waits until all has arrived; the messages and the processor time between the first look that saw one and the last.
async fn carry<W>(
    stage: &Stage,
    plan: Plan,
    client: &mut Process,
    watch: impl FnOnce(u32) -> Result<W, Failure>,
) -> Result<(u64, Cpu), Failure> {
    let processes = stage.processes(client);
    let look = async || Ok::<_, Failure>((stage.counts().await?.accepted, Cpu::used(&processes)));
    let mut watch = Some(watch);
    let mut watching = None;
    let mut first = None;
    let (mut seen, mut moved) = (0, Instant::now());
    loop {
        let (accepted, cpu) = look().await?;
        if accepted > 0 && first.is_none() {
            first = Some((accepted, cpu));
            watching = watch.take().map(|watch| watch(client.pid())).transpose()?;
        }
        if accepted >= u64::from(plan.messages) {
            drop(watching);
            let (before, earlier) = first.unwrap_or_default();
            return Ok(((accepted - before).max(1), cpu.since(&earlier)));
        }
        if accepted > seen {
            (seen, moved) = (accepted, Instant::now());
        }
        if moved.elapsed() > HALT {
            return Err(format!("nothing more arrived after {seen} of {}", plan.messages).into());
        }
        if client.exited().is_some() {
            return Err(format!("it ended after {seen} of {}", plan.messages).into());
        }
        sleep(POLL).await;
    }
}

/// Lets the client finish what it holds, then ends it; what is left in the lanes.
async fn end(stage: &Stage, plan: Plan, client: &mut Process, control: Option<Process>) -> u64 {
    // What is left after the wait is told as such.
    let _ = stage.until("the lanes are empty", async |stage| stage.depth(plan).await == 0).await;
    client.term();
    client.wait(PATIENCE).await;
    if let Some(mut control) = control {
        control.term();
        control.wait(PATIENCE).await;
    }
    stage.depth(plan).await
}

fn describe(stage: &Stage, client: &Process, which: Client, error: &Failure) -> Failure {
    let words = match which {
        Client::Bare => client.stderr_lines().join("\n"),
        Client::Worker | Client::Embedded => stage.last_words(which.log()),
    };
    format!("{which}: {error}; its last words:\n{words}").into()
}

fn exactness(plan: Plan, arrivals: &[Arrival], left: u64) -> Exact {
    let mut times: HashMap<String, usize> = (0..plan.messages).map(|n| (plan.mix.mail(plan.number, n).id, 0)).collect();
    let mut odd = 0;
    for arrival in arrivals {
        match arrival.id.as_ref().and_then(|id| times.get_mut(id)) {
            Some(times) if arrival.accepted => *times += 1,
            _ => odd += 1,
        }
    }
    let missing = times.values().filter(|&&times| times == 0).count();
    let repeated = times.values().filter(|&&times| times > 1).count();
    Exact { missing, repeated, odd, left }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(id: &str, accepted: bool) -> Arrival {
        Arrival { at_us: 1, id: Some(id.to_owned()), bytes: 1, accepted }
    }

    #[test]
    fn what_is_not_exactly_once_is_counted() {
        let plan = Plan { client: Client::Bare, mix: Mix::One, messages: 3, number: 1 };
        let id = |n| Mix::One.mail(1, n).id;
        let all = [arrival(&id(0), true), arrival(&id(1), true), arrival(&id(2), true)];
        assert!(exactness(plan, &all, 0).holds());
        assert_eq!(exactness(plan, &all, 2).left, 2);
        let bad = [arrival(&id(0), true), arrival(&id(0), true), arrival(&id(1), false), arrival("else", true)];
        assert_eq!(exactness(plan, &bad, 0), Exact { missing: 2, repeated: 1, odd: 2, left: 0 });
    }
}

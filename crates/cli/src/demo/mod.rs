//! `paceline demo`: the whole system in one process, on embedded parts, against the sandbox.
//!
//! `plan` says which mail there is and what goes wrong with it, `stage` under which limits and how the sandbox answers;
//! both are pure. `producers` publish it, a [`Node`] sends it, the `observer` watches from outside: what it reports
//! comes from the sandbox's arrivals file and the store, never from the worker's own counts, which are only compared.

mod arrivals;
mod books;
mod frame;
mod gauges;
mod home;
mod observer;
mod paint;
mod plan;
mod producers;
mod render;
mod report;
mod stage;
mod stats;
mod terminal;
mod words;

use std::{fs::File, path::PathBuf, sync::Arc, time::Duration};

use paceline_sandbox::{Handle, Sandbox, Scenario, Stats};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::{
    home::Home,
    observer::Observer,
    plan::Plan,
    report::{Circumstances, Report},
    stage::Figures,
    terminal::View,
};
pub(crate) use self::{
    plan::{LEAST, MOST},
    stage::USUAL,
};
use crate::{
    config::Config,
    exit::Failure,
    logging,
    node::Node,
    output::{self, Format},
    signals::Signals,
};

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) messages: usize,
    pub(crate) seed: u64,
    /// Stays up after the report.
    pub(crate) serve: bool,
    /// Lines in place of a screen.
    pub(crate) plain: bool,
    /// Where everything is kept; else in a temporary directory.
    pub(crate) keep: Option<PathBuf>,
}

const ARRIVALS: &str = "arrivals.ndjson";
const CONFIG: &str = "paceline.toml";
const LOG: &str = "paceline.log";
const SCENARIO: &str = "sandbox.toml";

/// Between two frames.
const FRAME: Duration = Duration::from_millis(125);
/// Broker and store are asked every so many frames.
const ASK_EVERY: u32 = 2;
/// How long the burst of password resets is spoken of.
const BURST_SHOWN: Duration = Duration::from_secs(3);
/// When nothing at all has happened for so long, nothing will.
const PATIENCE: Duration = Duration::from_secs(45);

/// Runs it, reports, and stays up if asked to.
///
/// # Errors
/// Not every message is accounted for, or some count does not agree; the report says which.
pub(crate) async fn run(options: Options, format: Format, level: Option<&str>) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut home = Home::new(options.keep.as_deref())?;
    logging::file(File::create(home.file(LOG))?, level.unwrap_or("info"))?;
    let figures = Figures::of(options.messages);
    let plan = Arc::new(Plan::new(options.messages, options.seed));
    let cast = tokio::select! {
        cast = Cast::start(&home, figures, options.seed) => cast?,
        () = signals.end() => return Err(Failure::failed("interrupted before it began")),
    };

    let mut observer = Observer::new(&plan, figures, &home.file(ARRIVALS), &cast)?;
    let mut view = View::new(options.plain);
    let began = Instant::now();
    let (interrupted, played) = tokio::select! {
        played = play(&plan, &cast, &mut observer, &mut view) => (false, played),
        () = signals.end() => (true, Ok(())),
    };
    let seconds = began.elapsed().as_secs_f64();
    // Gives the terminal back before anything else is written to it.
    drop(view);
    played?;

    let (stats, up) =
        if options.serve && !interrupted { (cast.sandbox.stats(), Some(cast)) } else { (cast.end(&mut signals).await?, None) };
    observer.close(&stats).await?;
    let kept = home.is_kept() || up.is_some();
    let around = Circumstances {
        seed: options.seed,
        seconds,
        interrupted,
        dir: kept.then(|| home.path().display().to_string()),
        arrivals: kept.then(|| home.file(ARRIVALS).display().to_string()),
    };
    let report = Report::new(&observer.books, figures, observer.told(&stats), around);
    if up.is_some() || !(report.ok || interrupted) {
        // What went wrong can be looked at; what is served may be wanted afterwards.
        home = home.keep();
    }
    output::object(format, &report, |report| format!("\n{}\n{}", render::text(report), words::parts(&home)))?;
    if let Some(cast) = up {
        let words = words::serving(&home, cast.node.http_addr(), cast.sandbox.addr());
        say(format, &words)?;
        signals.end().await;
        cast.end(&mut signals).await?;
        say(format, &words::left(&home))?;
    } else if !interrupted {
        say(format, &words::next(&home))?;
    }
    if report.ok { Ok(()) } else { Err(Failure::Reported) }
}

/// For people; where programs read standard output, beside it.
fn say(format: Format, text: &str) -> std::io::Result<()> {
    match format {
        Format::Table => output::write(text),
        Format::Json => std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()),
    }
}

/// Who takes part: the sandbox, and everything that is Paceline.
struct Cast {
    sandbox: Handle,
    node: Node,
    prefix: String,
}

impl Cast {
    async fn start(home: &Home, figures: Figures, seed: u64) -> Result<Cast, Failure> {
        let script = stage::scenario(seed);
        home.write(SCENARIO, &script)?;
        let listed = |mistakes: Vec<_>| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let scenario = Scenario::from_toml(&script).map_err(|mistakes| Failure::failed(listed(mistakes)))?;
        let options = paceline_sandbox::Options { listen: None, scenario, arrivals: Some(home.file(ARRIVALS)) };
        let sandbox = Sandbox::start(options).await.map_err(|e| Failure::failed(e.to_string()))?;
        let text = figures.config(sandbox.addr());
        home.write(CONFIG, &text)?;
        // The environment has no say: the demo is the same everywhere.
        let config = Config::parse(CONFIG, &text)?.embedded(home.path());
        let node = Node::start(&config).await?;
        Ok(Cast { sandbox, node, prefix: config.broker.prefix })
    }

    /// Lets calls under way finish, writes everything out, and gives the sandbox's final counts.
    async fn end(self, signals: &mut Signals) -> Result<Stats, Failure> {
        let drained = tokio::select! {
            drained = self.node.drain() => drained,
            () = signals.end() => return Err(Failure::failed("told twice to end: calls under way are abandoned")),
        };
        if drained.unfinished > 0 {
            tracing::warn!(calls = drained.unfinished, "still under way at the end of the grace period");
        }
        Ok(self.sandbox.stop().await)
    }
}

/// Publishes all mail and shows what becomes of it, until all is accounted for or nothing happens any more.
async fn play(plan: &Arc<Plan>, cast: &Cast, observer: &mut Observer, view: &mut View) -> Result<(), Failure> {
    let mut producers = producers::start(plan, cast.node.broker());
    let began = Instant::now();
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut batch, mut publishing, mut turn) = (Vec::new(), true, 0_u32);
    let mut progress = (observer.progress(), began);
    loop {
        tokio::select! {
            n = producers.published.recv_many(&mut batch, 1024), if publishing => {
                publishing = n > 0;
                observer.published(batch.drain(..));
                continue;
            }
            _ = frames.tick() => {}
        }
        observer.look()?;
        if turn.is_multiple_of(ASK_EVERY) {
            observer.ask().await?;
        }
        turn = turn.wrapping_add(1);
        let over = !publishing && observer.is_over();
        let frame = observer.frame(phase(plan, began.elapsed(), !publishing && observer.only_retries_are_left(), over));
        if progress.0 != observer.progress() {
            progress = (observer.progress(), Instant::now());
        }
        if over || progress.1.elapsed() > PATIENCE {
            view.show_last(&frame);
            return Ok(());
        }
        view.show(&frame);
    }
}

/// What goes on.
fn phase(plan: &Plan, elapsed: Duration, only_retries: bool, over: bool) -> &'static str {
    match () {
        () if over => "all accounted for",
        () if elapsed < plan.campaign_at => "password resets, and nothing else",
        () if only_retries => "the last retries",
        () if (plan.burst_at..plan.burst_at + BURST_SHOWN).contains(&elapsed) => "a campaign, and many password resets at once",
        () => "a campaign, and a password reset now and then",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_sound_and_holds_the_figures() {
        let text = Figures::of(2 * USUAL).config(([127, 0, 0, 1], 8026).into());
        let config = Config::parse(CONFIG, &text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.warnings.len(), 0, "{:?}", config.warnings);
        let rates: Vec<_> =
            config.destinations.iter().filter_map(|d| Some((d.name.as_str(), d.limit?.rate.to_string()))).collect();
        assert_eq!(rates, [("google", "54/s".into()), ("microsoft", "128/s".into()), ("yahoo", "96/s".into())]);
        assert_eq!((config.tail.rate.to_string(), config.accounts[0].limit.map(|l| l.burst)), ("48/s".into(), Some(560)));
    }

    #[test]
    fn phases_follow_one_another() {
        let plan = Plan::new(USUAL, 1);
        let at = |elapsed, only_retries, over| phase(&plan, elapsed, only_retries, over);
        assert!(at(Duration::ZERO, true, false).ends_with("nothing else"));
        assert!(at(plan.campaign_at, false, false).ends_with("now and then"));
        assert!(at(plan.burst_at, false, false).ends_with("at once"));
        assert!(at(plan.burst_at + BURST_SHOWN, false, false).ends_with("now and then"));
        assert_eq!(at(plan.expected, true, false), "the last retries");
        assert_eq!(at(plan.expected, true, true), "all accounted for");
    }
}

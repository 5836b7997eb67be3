//! `paceline demo`.

use std::path::PathBuf;

use clap::{Args, builder::RangedU64ValueParser};

use crate::{
    demo::{self, LEAST, MOST, Options, USUAL},
    exit::Failure,
    output::Format,
};

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How many messages; more of them go faster, not longer
    #[arg(long, value_name = "N", default_value_t = USUAL, value_parser = RangedU64ValueParser::<usize>::new().range(LEAST as u64..=MOST as u64))]
    pub messages: usize,
    /// The same seed, the same messages
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Stay up after the report, until Ctrl-C
    #[arg(long)]
    pub serve: bool,
    /// Plain lines in place of the screen, as without a terminal
    #[arg(long)]
    pub plain: bool,
    /// Keep everything in this directory, which must be new or empty [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

/// Runs it and prints its report.
pub async fn run(args: DemoArgs, format: Format, level: Option<&str>) -> Result<(), Failure> {
    let DemoArgs { messages, seed, serve, plain, keep } = args;
    demo::run(Options { messages, seed, serve, plain, keep }, format, level).await
}

//! The `paceline` program: configuration, wiring, commands, output.
//!
//! The only place where the parts meet. Results go to standard output, everything else to standard error; the exit
//! status is 0 when done, 1 when failed, 2 for usage or configuration.

pub mod args;
pub mod commands;
pub mod config;
mod demo;
pub mod exit;
pub mod feedback;
pub mod follow;
mod lanes;
mod learnt;
pub mod logging;
pub mod node;
pub mod orders;
pub mod output;
mod quotas;
pub mod services;
pub mod signals;
pub mod suppressions;

use std::{
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::Path,
    process::ExitCode,
};

use args::{Cli, Command, Global};
use clap::Parser;
use config::{Config, ConfigError, Problem};
use exit::Failure;
use output::Format;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Fails only where a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return ended(Err(Failure::failed(format!("cannot start: {e}")))),
    };
    let result = runtime.block_on(run(cli));
    // Nothing that still reads standard input or a file may hold up the exit.
    runtime.shutdown_background();
    ended(result)
}

async fn run(Cli { global, command }: Cli) -> Result<(), Failure> {
    let format = global.output.unwrap_or(Format::Table);
    let level = global.log_level.as_deref();
    let load = || configuration(&global);
    match command {
        Command::Demo(args) => commands::demo::run(args, format, level).await,
        Command::Worker => {
            let config = service(&global)?;
            global.embedded.as_deref().map_or(Ok(()), own_directory)?;
            commands::worker::run(&config, load).await
        }
        Command::Control => commands::control::run(&service(&global)?).await,
        Command::Sandbox(args) => commands::sandbox::run(&args, format, level).await,
        Command::Simulate(args) => commands::simulate::run(args, format).await,
        Command::CheckConfig => commands::check_config::run(load(), format),
        Command::Completions(args) => commands::completions::run(&args),
        Command::Healthcheck(args) => commands::healthcheck::run(load, &args, format).await,
        Command::Classify(args) => commands::classify::run(&load()?, &args, global.output),
        Command::Reply(args) => commands::reply::run(&load()?, &args),
        Command::Send(args) => {
            logging::command(level)?;
            commands::send::run(&load()?, &args, format).await
        }
        Command::Topology(command) => {
            logging::command(level)?;
            commands::topology::run(&load()?, &command, format).await
        }
        Command::Dlq(command) => {
            logging::command(level)?;
            commands::dlq::run(&load()?, &command, format).await
        }
        Command::Lanes(args) => {
            logging::command(level)?;
            commands::lanes::run(&load()?, &args, format).await
        }
        Command::Cancel(args) => {
            logging::command(level)?;
            commands::cancel::run(&load()?, &args, format).await
        }
        Command::Pause(command) => {
            logging::command(level)?;
            commands::pause::run(&load()?, &command, format).await
        }
        Command::Resume(command) => {
            logging::command(level)?;
            commands::pause::resume(&load()?, &command, format).await
        }
        Command::Limits(command) => {
            logging::command(level)?;
            commands::limits::run(&load()?, &command, format).await
        }
        Command::Suppress(command) => {
            logging::command(level)?;
            commands::suppress::run(&load()?, &command, format).await
        }
    }
}

/// What the file, the environment and the command line say.
fn configuration(global: &Global) -> Result<Config, ConfigError> {
    let config = Config::load(global.config.as_deref())?;
    Ok(match &global.embedded {
        Some(dir) => config.embedded(dir),
        None => config,
    })
}

/// Makes the directory of the embedded parts where it is not there: for this user alone, as mail is kept in it.
fn own_directory(dir: &Path) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| Failure::failed(format!("--embedded: the directory {} cannot be made: {e}", dir.display())))
}

/// The configuration of a service, with its log set up and its warnings in it.
fn service(global: &Global) -> Result<Config, Failure> {
    let config = configuration(global)?;
    logging::service(&config.log, global.log_level.as_deref())?;
    for Problem { origin, key, problem } in &config.warnings {
        tracing::warn!(place = %origin, key, "{key}: {problem}");
    }
    Ok(config)
}

/// Says why, and gives the exit status.
fn ended(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let what = failure.to_string();
            if !what.is_empty() {
                say(&what);
            }
            failure.code()
        }
    }
}

/// One remark for whoever sits in front of it.
pub(crate) fn say(what: &str) {
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "paceline: {what}");
}

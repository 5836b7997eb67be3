//! Events over real HTTP into the control process, each signed as its provider signs it, with keys made here.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking")]

mod bounds;
mod mailgun;
mod queue;
mod resend;
mod sendgrid;
mod ses;
mod shared_secrets;
mod stage;

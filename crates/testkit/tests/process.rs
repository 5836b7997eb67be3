//! Programs under test are heard, signalled and measured.

use std::path::Path;
use std::time::Duration;

use paceline_testkit::Launch;

const LONG: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Launch {
    Launch::program(Path::new("/bin/sh")).args(["-c", script])
}

#[tokio::test]
async fn a_program_runs_to_its_end_with_input_arguments_and_environment() {
    let done = shell("cat; echo \"$WORD\"; echo trouble >&2; exit 3").env("WORD", "said").stdin("in\n").run(LONG).await;
    assert_eq!(done.status.code(), Some(3));
    assert_eq!(done.stdout, "in\nsaid\n");
    assert_eq!(done.stderr, "trouble\n");
}

#[tokio::test]
async fn a_log_line_is_found_whether_it_came_before_or_comes_later_on_either_stream() {
    let script =
        "echo noise; echo '{\"message\":\"one\"}'; read -r _ < /dev/null; echo '{\"message\":\"two\",\"n\":7}' >&2; sleep 600";
    let mut process = shell(script).spawn();
    let two = process.wait_for_log(LONG, |line| line["message"] == "two").await;
    assert_eq!(two["n"], 7);
    process.wait_for_log(LONG, |line| line["message"] == "one").await;
    assert!(process.rss_kib() > 0 && process.peak_rss_kib() >= process.rss_kib());
    process.kill9().await;
    assert!(process.exited().is_some());
}

#[tokio::test]
#[should_panic(expected = "last words")]
async fn waiting_for_a_line_that_never_comes_shows_what_was_said() {
    shell("echo last words").spawn().wait_for_log(LONG, |_| false).await;
}

#[tokio::test]
async fn a_terminated_program_may_clean_up() {
    let mut process = shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done").spawn();
    process.wait_for_line(LONG, |line| line == "up").await;
    process.term();
    let done = process.finish(LONG).await;
    assert!(done.status.success());
    assert!(done.stdout.ends_with("bye\n"));
}

#[tokio::test]
async fn processor_time_is_measured() {
    let mut process = shell("echo up; while :; do :; done").spawn();
    process.wait_for_line(LONG, |line| line == "up").await;
    while process.cpu_micros() < 100_000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

//! What a test asks of a broker from its inside, or does to it there.

use std::collections::BTreeMap;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::{COOKIE, RabbitMq};
use crate::Error;
use crate::error::must;

/// A queue as the broker itself counts it, at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    pub name: String,
    /// Waiting to be delivered.
    pub ready: u64,
    /// Delivered, neither acked nor returned.
    pub unacked: u64,
    /// All the queue holds; more than ready + unacked while at-least-once dead-lettering has some in hand.
    pub messages: u64,
    pub consumers: u64,
}

impl RabbitMq {
    /// The broker's version, e.g. `3.10.8`.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn version(&self) -> String {
        let version = self.eval("list_to_binary(rabbit_misc:version())").await;
        version.as_str().unwrap_or_default().to_owned()
    }

    /// Every queue of the virtual host that `url` names, by name.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn queues(&self, url: &str) -> BTreeMap<String, QueueState> {
        let vhost = vhost_name(url);
        // A quorum queue's figures in `info` are those of its last tick, seconds ago: its state machine is asked
        // instead. One that ended after it was listed is none.
        let expression = format!(
            "Ask = fun(P, F) -> {{ok, {{_, N}}, _}} = ra:leader_query(P, F), N end, \
             One = fun(Q) -> \
               {{resource, _, queue, Name}} = amqqueue:get_name(Q), \
               P = amqqueue:get_pid(Q), \
               [R, U, M] = case amqqueue:get_type(Q) of \
                 rabbit_quorum_queue -> [Ask(P, fun rabbit_fifo:query_messages_ready/1), \
                   Ask(P, fun rabbit_fifo:query_messages_checked_out/1), Ask(P, fun rabbit_fifo:query_messages_total/1)]; \
                 _ -> [V || {{_, V}} <- rabbit_amqqueue:info(Q, [messages_ready, messages_unacknowledged, messages])] end, \
               [{{consumers, C}}] = rabbit_amqqueue:info(Q, [consumers]), \
               [Name, R, U, M, C] end, \
             [Row || Q <- rabbit_amqqueue:list(<<\"{vhost}\">>), Row <- try [One(Q)] catch exit:{{Gone, _}} when Gone =:= normal; Gone =:= noproc -> [] end]"
        );
        let rows = self.eval(&expression).await;
        let states = rows.as_array().into_iter().flatten().map(|row| {
            let count = |column: usize| row[column].as_u64().unwrap_or_default();
            let name = row[0].as_str().unwrap_or_default().to_owned();
            (name.clone(), QueueState { name, ready: count(1), unacked: count(2), messages: count(3), consumers: count(4) })
        });
        states.collect()
    }

    /// Closes every client's connection from the broker's side; how many there were.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn close_all_connections(&self) -> u64 {
        let expression =
            "length([rabbit_networking:close_connection(C, \"by the test\") || C <- rabbit_networking:connections()])";
        self.eval(expression).await.as_u64().unwrap_or_default()
    }

    /// Deletes a queue with all it holds, of the virtual host that `url` names.
    ///
    /// # Panics
    /// When there is no such queue, or the broker does not answer.
    pub async fn delete_queue(&self, url: &str, name: &str) {
        let vhost = vhost_name(url);
        let expression = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup({{resource, <<\"{vhost}\">>, queue, <<\"{name}\">>}}), \
             {{ok, _}} = rabbit_amqqueue:delete(Q, false, false, <<\"test\">>), true"
        );
        self.eval(&expression).await;
    }

    /// Raises the memory alarm: the broker blocks every connection that publishes.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn block_publishers(&self) {
        self.eval("rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}), true").await;
    }

    /// Clears the alarm of [`block_publishers`](RabbitMq::block_publishers).
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn unblock_publishers(&self) {
        self.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()}), true").await;
    }

    /// Evaluates Erlang in the broker, in a few milliseconds; the last expression's value as JSON.
    ///
    /// # Panics
    /// When it fails, or the broker does not answer.
    pub async fn eval(&self, expression: &str) -> Value {
        must(self.try_eval(expression).await)
    }

    async fn try_eval(&self, expression: &str) -> Result<Value, Error> {
        let program = "erl_call";
        let mut command = self.host.command(program);
        command.args(["-r", "-timeout", "30", "-c", COOKIE, "-e", "-fetch_stdout", "-no_result_term", "-address"]);
        command.arg(format!("localhost:{}", self.distribution.number()));
        let mut command: tokio::process::Command = command.into();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(Error::io("cannot run", program))?;
        if let Some(mut stdin) = child.stdin.take() {
            // What is printed comes back whole; a result would be cut short.
            let script = format!(
                "io:put_chars(try rabbit_json:encode(begin {expression} end) \
                 catch Class_:Reason_ -> io_lib:format(\"~p\", [{{Class_, Reason_}}]) end).\n"
            );
            stdin.write_all(script.as_bytes()).await.map_err(Error::io("cannot write to", program))?;
        }
        let output = child.wait_with_output().await.map_err(Error::io("no answer from", program))?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = [output.stdout, output.stderr].concat();
            let output = format!("{} from {expression}", String::from_utf8_lossy(&said));
            Error::Program { program: program.into(), output }
        })
    }
}

fn vhost_name(url: &str) -> &str {
    let name = url.rsplit('/').next().unwrap_or_default();
    if name == "%2f" { "/" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_hosts_are_read_from_urls() {
        assert_eq!(vhost_name("amqp://guest:guest@127.0.0.1:1/%2f"), "/");
        assert_eq!(vhost_name("amqp://guest:guest@127.0.0.1:1/case-3"), "case-3");
    }
}

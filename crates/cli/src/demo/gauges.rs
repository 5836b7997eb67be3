//! What broker and worker say of themselves.

use std::sync::PoisonError;

use paceline_broker::{Broker, BrokerError, Names};
use paceline_control::SharedRegistry;
use paceline_core::{Class, Lane, lane::RUNGS_S};
use prometheus_client::encoding::text::encode;

use super::{frame::Queues, stage::PLACES};

/// The worker's metrics, as anyone can read them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Metrics {
    text: String,
}

impl Metrics {
    pub(crate) fn read(registry: &SharedRegistry) -> Metrics {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry.read().unwrap_or_else(PoisonError::into_inner));
        Metrics { text }
    }

    /// All values of a metric added up, of those whose labels hold all of `labels`.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (has, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let fits = labels.iter().all(|(name, value)| has.split(',').any(|l| l == format!("{name}=\"{value}\"")));
            value.trim().parse::<f64>().ok().filter(|_| fits)
        };
        self.text.lines().filter_map(value).sum::<f64>() as u64
    }
}

/// What waits, is delayed and is under way.
pub(crate) async fn queues(broker: &dyn Broker, prefix: &str, metrics: &Metrics) -> Result<Queues, BrokerError> {
    let names = Names::new(prefix);
    let mut queues = Queues { in_flight: metrics.sum("paceline_in_flight", &[]), ..Queues::default() };
    for (place, row) in PLACES.iter().zip(&mut queues.waiting) {
        for class in Class::ALL {
            let lane = Lane::new(class, place.name);
            let held = metrics.sum("paceline_held", &[("class", class.as_str()), ("destination", place.name)]);
            row[class.index()] = broker.depth(&names.lane(&lane)).await? + held;
        }
    }
    for rung_s in RUNGS_S {
        queues.delayed += broker.depth(&names.delay(rung_s)).await?;
    }
    // Garbage is judged where it is; nothing of the demo's mail goes there, but what does must not be passed over.
    queues.waiting[PLACES.len() - 1][Class::Normal.index()] += broker.depth(&names.intake()).await?;
    Ok(queues)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_added_up_by_label() {
        let text = "# TYPE paceline_calls counter\n\
            paceline_calls_total{class=\"low\",outcome=\"accepted\"} 3\n\
            paceline_calls_total{class=\"low\",outcome=\"temporary\"} 4\n\
            paceline_calls_total{class=\"high\",outcome=\"accepted\"} 5\n\
            paceline_calls_total_more 100\n\
            paceline_plain 7\n";
        let metrics = Metrics { text: text.into() };
        assert_eq!(metrics.sum("paceline_calls_total", &[]), 12);
        assert_eq!(metrics.sum("paceline_calls_total", &[("class", "low")]), 7);
        assert_eq!(metrics.sum("paceline_calls_total", &[("class", "low"), ("outcome", "accepted")]), 3);
        assert_eq!((metrics.sum("paceline_plain", &[]), metrics.sum("absent", &[])), (7, 0));
    }
}

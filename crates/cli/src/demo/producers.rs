//! The producers: they publish what the plan says, when it says so.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_broker::{Broker, Outgoing, Properties, PublishError, Purpose, Route};
use paceline_classifier::Classifier;
use paceline_core::{Class, Domain, Timestamp};
use tokio::{
    sync::{
        Semaphore,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::plan::{Mail, Plan};

/// Messages under way from one producer to the broker.
const WINDOW: usize = 256;
/// How long one message is tried again.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// The broker has one more message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Published {
    /// Position in the plan.
    pub(crate) index: usize,
    /// Microseconds of the Unix epoch, before it was offered.
    pub(crate) at_us: u64,
}

/// Publishers under way; dropping them stops them.
pub(crate) struct Producers {
    pub(crate) published: UnboundedReceiver<Published>,
    _tasks: JoinSet<()>,
}

/// Starts two of them, so that a campaign does not hold up password resets on their way *into* the broker.
pub(crate) fn start(plan: &Arc<Plan>, broker: &Arc<dyn Broker>) -> Producers {
    let (sender, published) = unbounded_channel();
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for critical in [true, false] {
        tasks.spawn(produce(plan.clone(), broker.clone(), sender.clone(), began, critical));
    }
    Producers { published, _tasks: tasks }
}

async fn produce(plan: Arc<Plan>, broker: Arc<dyn Broker>, sender: UnboundedSender<Published>, began: Instant, critical: bool) {
    let window = Arc::new(Semaphore::new(WINDOW));
    let mut under_way = JoinSet::new();
    let mine = plan.mail.iter().enumerate().filter(|(_, m)| (m.class == Class::Critical) == critical);
    for (index, mail) in mine {
        sleep_until(began + mail.at).await;
        let Ok(domain) = Domain::parse(mail.domain) else { continue };
        let now = Timestamp::from(std::time::SystemTime::now());
        let outgoing = outgoing(mail, &domain, now);
        for _ in 0..mail.copies() {
            // The semaphore is never closed.
            let room = window.clone().acquire_owned().await;
            let (broker, outgoing, sender) = (broker.clone(), outgoing.clone(), sender.clone());
            under_way.spawn(async move {
                let _room = room;
                let at = Timestamp::from(std::time::SystemTime::now());
                if publish(&*broker, outgoing).await {
                    // Nobody listens any more only when the demo has ended.
                    let _ = sender.send(Published { index, at_us: at.as_micros().unsigned_abs() });
                }
            });
        }
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
}

fn outgoing(mail: &Mail, domain: &Domain, now: Timestamp) -> Outgoing {
    Outgoing {
        to: Route::Producers,
        key: Classifier::producer_key(mail.class, domain),
        body: Bytes::from(mail.body(now)),
        properties: Properties { message_id: Some(mail.id.clone()), timestamp: Some(now), ..Properties::default() },
        purpose: Purpose::Submit,
    }
}

async fn publish(broker: &dyn Broker, outgoing: Outgoing) -> bool {
    let until = Instant::now() + GIVE_UP_AFTER;
    loop {
        match broker.publish(outgoing.clone()).await {
            Ok(()) => return true,
            Err(error @ (PublishError::Invalid(_) | PublishError::Refused)) => {
                tracing::error!(%error, "a message was not published");
                return false;
            }
            Err(error) if Instant::now() > until => {
                tracing::error!(%error, "a message could not be published");
                return false;
            }
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

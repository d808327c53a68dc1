//! One attempt, from its lane's turn to its settlement: look up, sign, send, judge, write.
//!
//! What follows from what was seen is [`judge`]'s to say; [`settle`] carries it out. The way out
//! may be barred before anything was sent (a paused endpoint, a lost lease, a secret that does not
//! open): then the delivery returns to its lane.

mod settle;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_daemon::telemetry::{self, current_traceparent};
use postrider_log::{Clock, Generation, Offset, Partition};
use postrider_model::delivery::{Attempt, Delivery};
use postrider_model::endpoint::Endpoint;
use postrider_model::ids::EndpointId;
use postrider_model::outcome::{Outcome, Reason};
use postrider_model::payload;
use postrider_model::retry::{DelayLadder, RetrySchedule};
use postrider_model::signature::{self, SigningSecret};
use postrider_model::verdict::{Facts, Head, Observed, Seen, Verdict, judge};
use postrider_registry::{Gate, Lookup, Registry, Versioned};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::permits::Permit;
use super::step::{Answered, Step};
use crate::config::DeliverConfig;
use crate::metrics::DeliveryMetrics;
use crate::progress::Lease;
use crate::sender::{MayLeave, Sender, WebhookRequest, WebhookResponse};
use crate::stage::Producers;
use crate::view::{as_new_as, refreshed};

const OWN_FAULT_WAIT: Duration = Duration::from_secs(5);

/// What attempts are made with; shared by all of a process.
#[derive(Debug)]
pub struct DeliverContext<S> {
    /// Endpoints and their secrets.
    pub registry: Registry,
    /// The way out.
    pub sender: S,
    /// The log's time, as far as it is known.
    pub clock: Arc<dyn Clock>,
    /// Where settlements are written.
    pub producers: Producers,
    /// The delays of the partitions of `retry`.
    pub ladder: DelayLadder,
    /// For endpoints without a schedule of their own.
    pub default_schedule: RetrySchedule,
    /// Limits.
    pub config: DeliverConfig,
    /// Counters.
    pub metrics: DeliveryMetrics,
}

/// An attempt that is to be made, and what must be known of its lane.
#[derive(Debug)]
pub(super) struct AttemptJob {
    pub(super) partition: Partition,
    pub(super) generation: Generation,
    pub(super) step: Step,
    /// How often this attempt was cut short before, in a row.
    pub(super) interruptions: u32,
    /// It probes an endpoint whose breaker is open.
    pub(super) probes: bool,
    /// Since when nothing succeeded at the endpoint.
    pub(super) failing_since_ms: Option<i64>,
    /// When this head of an ordering key failed first.
    pub(super) failed_at_ms: Option<i64>,
    /// Our own network seems down.
    pub(super) network_is_down: bool,
    /// It waited so long that the log would lose it soon: it is dead-lettered instead of sent.
    pub(super) expires: bool,
    /// Where it is told that the endpoint has answered.
    pub(super) tells_answered: mpsc::Sender<Answered>,
    pub(super) _permit: Permit,
}

impl AttemptJob {
    fn tell_answered(&self, seen: Seen) {
        let answered = Answered {
            partition: self.partition,
            generation: self.generation,
            endpoint: self.step.delivery.endpoint.clone(),
            offset: self.step.offset,
            probes: self.probes,
            seen,
        };
        // Where it finds no room, the end of the attempt tells it.
        drop(self.tells_answered.try_send(answered));
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum AttemptEnd {
    /// The settlement is durable: this record of `attempts`, at this place, appended about then.
    Settled {
        attempt: Box<Attempt>,
        place: Offset,
        at_ms: i64,
        seen: Seen,
    },
    /// It was cut short, and settles nothing.
    Interrupted,
    /// It may not be sent, or not any more. Nothing was sent; the delivery returns to its lane.
    NotSent,
}

/// What must be known before anything is sent.
enum Prepared {
    Ready(Box<Versioned<Endpoint>>, Vec<SigningSecret>),
    /// Nothing is sent because of this.
    Settles(Observed<'static>),
    NotSent,
}

/// What was sent, and what came back.
struct Exchange {
    started_at_ms: i64,
    duration_ms: u32,
    response: WebhookResponse,
}

impl<S: Sender> DeliverContext<S> {
    /// Makes an attempt, in a span of its trace.
    pub(super) fn attempt(
        &self,
        job: &AttemptJob,
        lease: &Lease,
        cut: &CancellationToken,
    ) -> impl Future<Output = AttemptEnd> + Send {
        self.attempt_in_span(job, lease, cut)
            .instrument(span_of(job))
    }

    async fn attempt_in_span(
        &self,
        job: &AttemptJob,
        lease: &Lease,
        cut: &CancellationToken,
    ) -> AttemptEnd {
        let prepared = tokio::select! {
            biased;
            () = cut.cancelled() => return AttemptEnd::Interrupted,
            prepared = self.prepare(job, lease) => prepared,
        };
        let (endpoint, secrets) = match prepared {
            Prepared::Ready(endpoint, secrets) => (endpoint, secrets),
            Prepared::Settles(observed) => return self.conclude(job, None, observed, None).await,
            Prepared::NotSent => return AttemptEnd::NotSent,
        };
        let exchange = tokio::select! {
            biased;
            () = cut.cancelled() => None,
            exchange = self.exchange(&job.step.delivery, &endpoint.value, &secrets, lease) => match exchange {
                Some(exchange) => Some(exchange),
                None => return AttemptEnd::NotSent,
            },
        };
        let Some(exchange) = exchange else {
            let in_a_row = job.interruptions + 1;
            let interrupted = Observed::Interrupted { in_a_row };
            let exchange = self.of_interruptions(in_a_row);
            return self
                .conclude(job, Some(&endpoint), interrupted, Some(exchange))
                .await;
        };
        let outcome = exchange.response.outcome.clone();
        let attempted = Observed::Attempted {
            outcome: &outcome,
            started_at_ms: exchange.started_at_ms,
            duration_ms: exchange.duration_ms,
        };
        self.conclude(job, Some(&endpoint), attempted, Some(exchange))
            .await
    }

    // ---- before anything is sent ----

    async fn prepare(&self, job: &AttemptJob, lease: &Lease) -> Prepared {
        let delivery = &job.step.delivery;
        let position = self.registry.position();
        let endpoint = match self.look_up(delivery).await {
            None => return Prepared::NotSent,
            Some(Lookup::Found(endpoint)) => endpoint,
            Some(Lookup::Deleted | Lookup::Unknown) => {
                return Prepared::Settles(Observed::EndpointDeleted);
            }
        };
        if delivery.is_discarded_by(&endpoint.value) {
            return Prepared::Settles(Observed::BacklogDiscarded);
        }
        if job.expires {
            return Prepared::Settles(Observed::Expired);
        }
        // Where the view had to be waited for, the lane judges again: meanwhile its breaker may
        // have opened.
        let needed = self.registry.position_of(delivery.registry).unwrap_or(0);
        let waited = position < needed && self.registry.position() >= needed;
        if waited || self.registry.gate(&endpoint.value) != Gate::Open {
            return Prepared::NotSent;
        }
        match self.secrets(&endpoint.value).await {
            Some(secrets) if lease.holds() => Prepared::Ready(Box::new(endpoint), secrets),
            _ => Prepared::NotSent,
        }
    }

    /// Finds the endpoint. That there is none is concluded only in a view at least as new as the
    /// delivery, of a registry that is not known to have lost records; else, after a while, nothing
    /// is: the lane judges again.
    async fn look_up(&self, delivery: &Delivery) -> Option<Lookup> {
        let stamp = delivery.registry;
        as_new_as(&self.registry, stamp).await;
        let mut found = self.registry.endpoint(&delivery.endpoint);
        if self.registry.position_of(stamp).is_none() && !matches!(found, Lookup::Found(_)) {
            refreshed(&self.registry).await;
            found = self.registry.endpoint(&delivery.endpoint);
        }
        if found == Lookup::Unknown {
            if self.registry.is_of_a_lost_registry(stamp) {
                let detail = format!(
                    "a delivery was matched in another registry, whose endpoint {} is not in this one",
                    delivery.endpoint
                );
                self.registry.report_loss(stamp.registry_id, detail);
            }
            if self.registry.loss().is_some() || !self.registry.ready() {
                sleep(OWN_FAULT_WAIT).await;
                return None;
            }
        }
        Some(found)
    }

    /// Opens the secrets. That they cannot be opened is our fault, not the endpoint's: after a
    /// while it is tried again, with the endpoint as it is by then, and costs no attempt.
    async fn secrets(&self, endpoint: &Endpoint) -> Option<Vec<SigningSecret>> {
        match self.registry.signing_secrets(endpoint, self.clock.now_ms()) {
            Ok(secrets) => Some(secrets),
            Err(error) => {
                tracing::error!(endpoint_id = %endpoint.id, %error, "signing secrets cannot be opened, waiting");
                sleep(OWN_FAULT_WAIT).await;
                None
            }
        }
    }

    /// What keeps this process from sending anything to an endpoint, as far as the registry tells.
    pub(super) fn obstacles(&self, endpoint: &EndpointId) -> Vec<String> {
        let mut obstacles = Vec::new();
        match self.registry.endpoint(endpoint) {
            Lookup::Found(endpoint) => {
                let now_ms = self.clock.now_ms();
                if let Err(error) = self.registry.signing_secrets(&endpoint.value, now_ms) {
                    obstacles.push(format!("a signing secret does not open: {error}"));
                }
            }
            Lookup::Unknown => {
                obstacles.push("this process's view of the registry does not have it".to_owned());
            }
            Lookup::Deleted => {}
        }
        obstacles
    }

    // ---- sending ----

    /// Sends the webhook; `None` if it did not leave.
    async fn exchange(
        &self,
        delivery: &Delivery,
        endpoint: &Endpoint,
        secrets: &[SigningSecret],
        lease: &Lease,
    ) -> Option<Exchange> {
        let started_at_ms = self.clock.now_ms();
        let started = Instant::now();
        let response = match payload::body(&delivery.event, endpoint.format) {
            Ok(body) => {
                let _in_flight = InFlight::new(&self.metrics);
                let span = telemetry::calling("POST");
                let request = span
                    .in_scope(|| self.request(delivery, endpoint, secrets, body, started_at_ms));
                let may_leave = self.may_leave(&delivery.endpoint, lease);
                let response = self
                    .sender
                    .send(request, may_leave)
                    .instrument(span.clone())
                    .await?;
                if let Some(status) = response.status() {
                    telemetry::describe(&span, "http.response.status_code", i64::from(status));
                }
                response
            }
            Err(mismatch) => WebhookResponse {
                outcome: Outcome::Unsendable(Reason::FormatMismatch),
                detail: mismatch.to_string(),
                excerpt: Bytes::new(),
            },
        };
        Some(Exchange {
            started_at_ms,
            duration_ms: u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX),
            response,
        })
    }

    /// What is asked when a webhook is about to leave: whether the lease holds, and the endpoint
    /// still wants it.
    fn may_leave(&self, endpoint: &EndpointId, lease: &Lease) -> MayLeave {
        let (registry, endpoint, lease) = (self.registry.clone(), endpoint.clone(), lease.clone());
        Arc::new(move || {
            lease.holds()
                && matches!(registry.endpoint(&endpoint), Lookup::Found(endpoint)
                    if registry.gate(&endpoint.value) == Gate::Open)
        })
    }

    fn request(
        &self,
        delivery: &Delivery,
        endpoint: &Endpoint,
        secrets: &[SigningSecret],
        body: Bytes,
        now_ms: i64,
    ) -> WebhookRequest {
        let id = delivery.event.id.as_str();
        let timestamp_s = now_ms.div_euclid(1000);
        let timeout_ms = endpoint
            .attempt_timeout_ms
            .map_or(self.config.attempt_timeout_ms, u64::from);
        WebhookRequest {
            tenant: endpoint.tenant.clone(),
            url: endpoint.url.clone(),
            id: id.to_owned(),
            attempt: delivery.attempt,
            timestamp_s,
            signature: signature::sign(secrets, id, timestamp_s, &body),
            traceparent: traceparent_of(delivery),
            body,
            timeout: Duration::from_millis(timeout_ms),
        }
    }

    /// What is told of an attempt that was cut short so often that it counts.
    fn of_interruptions(&self, in_a_row: u32) -> Exchange {
        Exchange {
            started_at_ms: self.clock.now_ms(),
            duration_ms: 0,
            response: WebhookResponse {
                outcome: Outcome::Unanswered(Reason::Timeout),
                detail: format!("interrupted {in_a_row} times in a row"),
                excerpt: Bytes::new(),
            },
        }
    }

    // ---- what follows ----

    /// Asks what follows, and carries it out.
    async fn conclude(
        &self,
        job: &AttemptJob,
        endpoint: Option<&Versioned<Endpoint>>,
        observed: Observed<'_>,
        exchange: Option<Exchange>,
    ) -> AttemptEnd {
        let delivery = &job.step.delivery;
        let settings = endpoint.map(|endpoint| &endpoint.value);
        let schedule = settings.and_then(|endpoint| endpoint.retry_schedule.as_ref());
        let head = delivery.order_key().map(|_| Head {
            when_blocked: settings
                .and_then(|endpoint| endpoint.ordered)
                .unwrap_or_default(),
            failed_at_ms: job.failed_at_ms,
            blocked_ms_max: self.config.blocked_ms_max(),
        });
        let facts = Facts {
            work: &delivery.work_id(),
            attempt: delivery.attempt,
            schedule: schedule.unwrap_or(&self.default_schedule),
            now_ms: self.clock.now_ms(),
            ages_tell: self.clock.ages_tell(),
            head,
            network_is_down: job.network_is_down,
            failing_since_ms: job.failing_since_ms,
            disable_failing_after_ms: self.config.disable_failing_after_ms(),
        };
        match judge(observed, &facts) {
            Verdict::NotSpent => AttemptEnd::NotSent,
            Verdict::Interrupted => self.record_interruption(job).await,
            Verdict::Settled(decision) => {
                if exchange.is_some() {
                    job.tell_answered(decision.seen);
                }
                let now_ms = facts.now_ms;
                self.settle(job, endpoint, decision, exchange, now_ms).await
            }
        }
    }
}

/// The span of an attempt and what follows from it, for the trace and for the lines logged in it.
fn span_of(job: &AttemptJob) -> Span {
    let delivery = &job.step.delivery;
    let span = tracing::info_span!(
        parent: None,
        "attempt",
        event_id = %delivery.event.id,
        endpoint_id = %delivery.endpoint,
        attempt = delivery.attempt,
    );
    let trace = &delivery.event.trace;
    telemetry::set_parent(&span, &trace.traceparent, &trace.tracestate);
    span
}

fn traceparent_of(delivery: &Delivery) -> String {
    current_traceparent().unwrap_or_else(|| delivery.event.trace.traceparent.clone())
}

/// Counts an attempt as under way for as long as it lives.
struct InFlight<'a>(&'a DeliveryMetrics);

impl<'a> InFlight<'a> {
    fn new(metrics: &'a DeliveryMetrics) -> Self {
        metrics.attempts_in_flight.inc();
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.attempts_in_flight.dec();
    }
}

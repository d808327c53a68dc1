//! Carries one delivery from its lane to its settlement: attempt, decision, writes.
//!
//! The decision is [`decide`]'s. The writes come in the order that makes a crash between any two of them harmless:
//! first what the outcome leads to (the endpoint's disabling, the retry, the dead letter), then the attempt, and only
//! when that is durable does the caller resolve the offset. A write that is not acknowledged is repeated; until then
//! nothing moves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_daemon::telemetry::{self, current_traceparent};
use postrider_log::{Clock, NewRecord, Offset, Partition, Producer, Target};
use postrider_model::delivery::{Attempt, AttemptOutcome, DETAIL_BYTES_MAX, Delivery, Settlement};
use postrider_model::endpoint::Endpoint;
use postrider_model::ids::EndpointId;
use postrider_model::operational;
use postrider_model::outcome::{Blocks, Decision, Outcome, Reason, decide};
use postrider_model::payload;
use postrider_model::retry::{DelayLadder, RetrySchedule};
use postrider_model::signature::{self, SigningSecret};
use postrider_model::topics::{ATTEMPTS, EVENTS, RETRY, event_key};
use postrider_registry::{Gate, Lookup, Registry, Versioned};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::lane::{Seen, Step};
use crate::config::DeliverConfig;
use crate::dead_letter;
use crate::durable::{TooLarge, append_durably};
use crate::metrics::DeliveryMetrics;
use crate::progress::Lease;
use crate::sender::{MayLeave, Sender, WebhookRequest, WebhookResponse};
use crate::view::{as_new_as, refreshed};

/// This many interruptions in a row count as a timeout, so that a delivery that takes workers down does not live for
/// ever.
const INTERRUPTIONS_MAX: u32 = 3;
const OWN_FAULT_WAIT: Duration = Duration::from_secs(5);
const INTERRUPTED_WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// What carrying works with; shared by all deliveries of a worker.
#[derive(Debug)]
pub struct CarryContext<S> {
    /// Endpoints and their secrets.
    pub registry: Registry,
    /// The way out.
    pub sender: S,
    /// The log's time, as far as it is known.
    pub clock: Arc<dyn Clock>,
    /// Where settlements are written.
    pub producer: Arc<dyn Producer>,
    /// The delays of the partitions of `retry`.
    pub ladder: DelayLadder,
    /// For endpoints without a schedule of their own.
    pub default_schedule: RetrySchedule,
    /// Limits.
    pub config: DeliverConfig,
    /// Counters.
    pub metrics: DeliveryMetrics,
}

/// A delivery on its way, and what it needs to know of its partition.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) partition: Partition,
    pub(super) step: Step,
    pub(super) interruptions: u32,
    /// It probes an endpoint whose breaker is open.
    pub(super) probe: bool,
    /// Its lane counted among the slow when it started.
    pub(super) slow: bool,
    /// Since when nothing succeeded at the endpoint.
    pub(super) failing_since_ms: Option<i64>,
    /// When this head of an ordering key failed first.
    pub(super) failed_at_ms: Option<i64>,
    /// Our own network seems down: that the endpoint cannot be reached spends nothing.
    pub(super) spared: bool,
    /// It waited so long that the log would lose it soon: it is dead-lettered instead of attempted.
    pub(super) expires: bool,
}

impl Carried {
    fn origin(&self) -> Origin<'_> {
        Origin {
            partition: self.partition,
            offset: self.step.offset,
            delivery: &self.step.delivery,
        }
    }
}

/// A delivery and where its record is.
#[derive(Debug, Clone, Copy)]
struct Origin<'a> {
    partition: Partition,
    offset: Offset,
    delivery: &'a Delivery,
}

/// How carrying ended.
#[derive(Debug)]
pub(super) enum Carry {
    /// The settlement is durable: this record of `attempts`, at this place, appended about then.
    Settled {
        attempt: Box<Attempt>,
        place: Offset,
        at_ms: i64,
        seen: Seen,
    },
    /// Cut short; it settles nothing.
    Interrupted,
    /// It might not leave, or not any more; nothing was sent, and the lane judges again.
    Unstarted,
}

/// An attempt as far as it is known, before the decision.
struct Made {
    started_at_ms: i64,
    duration_ms: u32,
    response: WebhookResponse,
}

impl<S: Sender> CarryContext<S> {
    /// Carries a delivery, in a span of its trace.
    pub(super) async fn carry(
        &self,
        carried: &Carried,
        lease: &Lease,
        cut: &CancellationToken,
    ) -> Carry {
        let span = span_of(carried);
        self.carry_on(carried, lease, cut).instrument(span).await
    }

    async fn carry_on(&self, carried: &Carried, lease: &Lease, cut: &CancellationToken) -> Carry {
        let delivery = &carried.step.delivery;
        let position = self.registry.position();
        let looked_up = tokio::select! {
            biased;
            () = cut.cancelled() => return Carry::Interrupted,
            looked_up = self.look_up(delivery) => looked_up,
        };
        let endpoint = match looked_up {
            None => return Carry::Unstarted,
            Some(Lookup::Found(endpoint)) => endpoint,
            Some(Lookup::Deleted | Lookup::Unknown) => {
                return self
                    .settle_unattempted(carried, Settlement::Dropped, Reason::EndpointDeleted)
                    .await;
            }
        };
        if delivery.is_discarded_by(&endpoint.value) {
            return self
                .settle_unattempted(carried, Settlement::Dropped, Reason::BacklogDiscarded)
                .await;
        }
        if carried.expires {
            return self
                .settle_unattempted(carried, Settlement::DeadLettered, Reason::Expired)
                .await;
        }
        // Where the view had to be waited for, the lane judges again: meanwhile its breaker may have opened.
        let needed = self.registry.position_of(delivery.registry).unwrap_or(0);
        let waited = position < needed && self.registry.position() >= needed;
        if waited || self.registry.gate(&endpoint.value) != Gate::Open {
            return Carry::Unstarted;
        }
        let opened = tokio::select! {
            biased;
            () = cut.cancelled() => return Carry::Interrupted,
            opened = self.secrets(&endpoint.value) => opened,
        };
        let Some(secrets) = opened.filter(|_| lease.holds()) else {
            return Carry::Unstarted;
        };
        let mut made = tokio::select! {
            biased;
            () = cut.cancelled() => None,
            made = self.attempt(delivery, &endpoint.value, &secrets, lease) => match made {
                Some(made) => Some(made),
                None => return Carry::Unstarted,
            },
        };
        if made.is_none() && carried.interruptions + 1 >= INTERRUPTIONS_MAX {
            made = Some(self.taken_as_timeout());
        }
        match made {
            Some(made) => self.settle(carried, &endpoint, made).await,
            None => self.record_interruption(carried).await,
        }
    }

    /// Finds the endpoint. That there is none is concluded only in a view at least as new as the delivery, of a registry
    /// that is not known to have lost records; else, after a while, nothing is: the lane judges again.
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

    /// Opens the secrets. That they cannot be opened is our fault, not the endpoint's: after a while it is tried again,
    /// with the endpoint as it is by then, and costs no attempt.
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

    async fn attempt(
        &self,
        delivery: &Delivery,
        endpoint: &Endpoint,
        secrets: &[SigningSecret],
        lease: &Lease,
    ) -> Option<Made> {
        let started_at_ms = self.clock.now_ms();
        let started = Instant::now();
        let response = match payload::body(&delivery.event, endpoint.format) {
            Ok(body) => {
                let _in_flight = InFlight::new(&self.metrics);
                let span = telemetry::calling("POST");
                let request = span
                    .in_scope(|| self.request(delivery, endpoint, secrets, body, started_at_ms));
                let may_leave = self.may_leave(&delivery.endpoint, lease);
                let sent = self.sender.send(request, may_leave);
                let response = sent.instrument(span.clone()).await?;
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
        let duration_ms = u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX);
        Some(Made {
            started_at_ms,
            duration_ms,
            response,
        })
    }

    /// What is asked when a webhook is about to leave: whether the lease holds, and the endpoint still wants it.
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
            traceparent: current_traceparent()
                .unwrap_or_else(|| delivery.event.trace.traceparent.clone()),
            body,
            timeout: Duration::from_millis(timeout_ms),
        }
    }

    fn taken_as_timeout(&self) -> Made {
        Made {
            started_at_ms: self.clock.now_ms(),
            duration_ms: 0,
            response: WebhookResponse {
                outcome: Outcome::Unanswered(Reason::Timeout),
                detail: format!("interrupted {INTERRUPTIONS_MAX} times in a row"),
                excerpt: Bytes::new(),
            },
        }
    }

    async fn settle(&self, carried: &Carried, endpoint: &Versioned<Endpoint>, made: Made) -> Carry {
        let delivery = &carried.step.delivery;
        let schedule = endpoint
            .value
            .retry_schedule
            .as_ref()
            .unwrap_or(&self.default_schedule);
        let work = delivery.work_id();
        let now_ms = self.clock.now_ms();
        let mut decision = decide(
            &made.response.outcome,
            &work,
            delivery.attempt,
            schedule,
            now_ms,
        );
        if delivery.order_key().is_some() {
            let blocks = Blocks {
                when_blocked: endpoint.value.ordered.unwrap_or_default(),
                since_ms: carried.failed_at_ms.unwrap_or(made.started_at_ms),
                wait_ms_max: if self.clock.ages_tell() {
                    self.config.blocked_ms_max()
                } else {
                    i64::MAX
                },
            };
            decision = decision.of_head(&made.response.outcome, blocks, schedule, now_ms);
        }
        if carried.spared && made.response.is_unreachable() {
            return Carry::Unstarted;
        }
        if let Some(reason) = self.judge(&decision, carried.failing_since_ms, now_ms) {
            self.disable(endpoint, reason).await;
        }
        if decision.settlement != Settlement::Delivered {
            telemetry::fail(&Span::current(), decision.reason.as_str());
        }
        let (settlement, note) = self
            .write_consequence(carried.origin(), &decision, &made.response, now_ms)
            .await;
        let succeeded = settlement == Settlement::Delivered;
        let seen = seen(&made, &decision);
        let attempt = Attempt {
            started_at_ms: made.started_at_ms,
            duration_ms: made.duration_ms,
            outcome: if succeeded {
                AttemptOutcome::Succeeded
            } else {
                AttemptOutcome::Failed
            },
            status: made.response.status(),
            detail: noted(made.response.detail, note),
            response_excerpt: made.response.excerpt,
            ..unmade(
                carried.step.offset,
                delivery,
                decision.reason,
                Some(settlement),
                now_ms,
            )
        };
        self.record(carried.partition, attempt, seen).await
    }

    /// Why the endpoint is to be disabled, if it is: it says that it is gone, or nothing has succeeded for days.
    fn judge(
        &self,
        decision: &Decision,
        failing_since_ms: Option<i64>,
        now_ms: i64,
    ) -> Option<Reason> {
        let failing_ms_max =
            i64::try_from(self.config.disable_failing_after_ms).unwrap_or(i64::MAX);
        let fails = matches!(decision.settlement, Settlement::RetryScheduled { .. })
            || decision.dead_letter_reason == Some(Reason::Exhausted);
        let fails_for_long = failing_since_ms
            .is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= failing_ms_max);
        if decision.disables_endpoint {
            return Some(decision.reason);
        }
        (fails && fails_for_long && self.clock.ages_tell()).then_some(Reason::EndpointFailing)
    }

    /// Writes what the decision leads to, before the attempt is recorded. A retry that is too large for its topic
    /// becomes a dead letter instead. What is told is what was written, with a note if that is not what was decided.
    async fn write_consequence(
        &self,
        origin: Origin<'_>,
        decision: &Decision,
        response: &WebhookResponse,
        now_ms: i64,
    ) -> (Settlement, Option<&'static str>) {
        let delivery = origin.delivery;
        let mut buried_for = decision.dead_letter_reason.unwrap_or(decision.reason);
        match decision.settlement {
            // It keeps its place in its lane, which reads of it in `attempts`.
            Settlement::RetryScheduled { .. } if delivery.order_key().is_some() => {
                return (decision.settlement, None);
            }
            Settlement::RetryScheduled { due_at_ms } => {
                if self.schedule_retry(delivery, due_at_ms, now_ms).await {
                    return (decision.settlement, None);
                }
                buried_for = Reason::TooLarge;
            }
            Settlement::DeadLettered => {}
            Settlement::Delivered | Settlement::Dropped => return (decision.settlement, None),
        }
        let detail = match response.status() {
            Some(status) => {
                let trouble = Some(&*response.detail).filter(|detail| !detail.is_empty());
                noted(format!("the endpoint answered {status}"), trouble)
            }
            None => response.detail.clone(),
        };
        self.bury(origin, buried_for, detail, response.status())
            .await
    }

    /// Appends the next attempt to the longest delay that fits. False: it is too large for the topic.
    async fn schedule_retry(&self, delivery: &Delivery, due_at_ms: i64, now_ms: i64) -> bool {
        let retry = Delivery {
            attempt: delivery.attempt + 1,
            due_at_ms,
            ..delivery.clone()
        };
        let partition = self.ladder.place(due_at_ms - now_ms).unwrap_or(0);
        let record = NewRecord {
            key: endpoint_key(delivery),
            value: Some(retry.encode()),
            headers: Vec::new(),
        };
        append_durably(&*self.producer, RETRY, Target::Partition(partition), record)
            .await
            .is_ok()
    }

    /// Writes a dead letter; what became of the delivery by that.
    async fn bury(
        &self,
        origin: Origin<'_>,
        reason: Reason,
        detail: String,
        status: Option<u16>,
    ) -> (Settlement, Option<&'static str>) {
        let now_ms = self.clock.now_ms();
        let letter = dead_letter::of_delivery(origin.delivery, reason, detail, status, now_ms);
        let at = (origin.partition, origin.offset);
        match dead_letter::write(&*self.producer, &self.metrics, letter, at).await {
            Ok(written) => (Settlement::DeadLettered, written.note()),
            Err(TooLarge) => (
                Settlement::Dropped,
                Some("no dead letter of it fits into the topic"),
            ),
        }
    }

    /// Disables the endpoint that this attempt was made to, and tells its tenant. A newer version of it voids the
    /// judgement.
    async fn disable(&self, endpoint: &Versioned<Endpoint>, reason: Reason) {
        let id = &endpoint.value.id;
        loop {
            match self
                .registry
                .disable_endpoint(id, endpoint.version, reason.as_str())
                .await
            {
                Ok(disabled) => {
                    tracing::info!(endpoint_id = %id, disabled, %reason, "endpoint judged");
                    return self.tell_disabled(id).await;
                }
                Err(error) => {
                    tracing::warn!(endpoint_id = %id, %error, "endpoint not disabled yet, repeating it");
                    sleep(OWN_FAULT_WAIT).await;
                }
            }
        }
    }

    /// Appends the operational event. Its id is derived from what it tells, so a repeat is dropped.
    async fn tell_disabled(&self, id: &EndpointId) {
        let Lookup::Found(endpoint) = self.registry.endpoint(id) else {
            return;
        };
        let told = operational::endpoint_disabled(&endpoint.value, endpoint.version);
        let Some(event) = told else { return };
        let value = event.encode();
        let proof = self.registry.vouch(&value);
        let record = NewRecord {
            key: event_key(&event.tenant, &event.ordering_key, &event.id),
            value: Some(value),
            headers: vec![(operational::PROOF_HEADER.to_owned(), proof.into())],
        };
        if append_durably(&*self.producer, EVENTS, Target::Key, record)
            .await
            .is_err()
        {
            tracing::error!(endpoint_id = %id, "the operational event is too large for its topic");
        }
    }

    async fn settle_unattempted(
        &self,
        carried: &Carried,
        settlement: Settlement,
        reason: Reason,
    ) -> Carry {
        let delivery = &carried.step.delivery;
        let (settlement, note) = if settlement == Settlement::DeadLettered {
            self.bury(carried.origin(), reason, String::new(), None)
                .await
        } else {
            (settlement, None)
        };
        let attempt = Attempt {
            detail: noted(String::new(), note),
            ..unmade(
                carried.step.offset,
                delivery,
                reason,
                Some(settlement),
                self.clock.now_ms(),
            )
        };
        self.record(carried.partition, attempt, Seen::Nothing).await
    }

    /// Records that the attempt was cut, if that is possible in short time: the partition is about to leave.
    async fn record_interruption(&self, carried: &Carried) -> Carry {
        let attempt = Attempt {
            outcome: AttemptOutcome::Interrupted,
            ..unmade(
                carried.step.offset,
                &carried.step.delivery,
                Reason::Interrupted,
                None,
                self.clock.now_ms(),
            )
        };
        let recorded = timeout(
            INTERRUPTED_WRITE_TIMEOUT,
            self.record(carried.partition, attempt, Seen::Nothing),
        )
        .await;
        if recorded.is_err() {
            tracing::warn!(event_id = %carried.step.delivery.event.id, "interruption not recorded in time");
        }
        Carry::Interrupted
    }

    /// Appends the attempt, cut down if it is too large; when this returns, the settlement is durable.
    async fn record(&self, partition: Partition, mut attempt: Attempt, seen: Seen) -> Carry {
        let place = loop {
            let record = NewRecord {
                key: Bytes::copy_from_slice(attempt.work.endpoint.as_str().as_bytes()),
                value: Some(attempt.encode()),
                headers: Vec::new(),
            };
            match append_durably(
                &*self.producer,
                ATTEMPTS,
                Target::Partition(partition),
                record,
            )
            .await
            {
                Ok(position) => break position.offset,
                Err(TooLarge)
                    if attempt.response_excerpt.is_empty() && attempt.detail.is_empty() =>
                {
                    tracing::error!(
                        "even a bare attempt is too large for its topic; raise max.message.bytes"
                    );
                    sleep(OWN_FAULT_WAIT).await;
                }
                Err(TooLarge) => {
                    attempt.response_excerpt = Bytes::new();
                    attempt.detail = String::new();
                }
            }
        };
        let now_ms = self.clock.now_ms();
        if let Some(settlement) = attempt.settlement {
            telemetry::describe(&Span::current(), "settlement", settlement.as_str());
        }
        self.metrics
            .attempt_ended(attempt.outcome, attempt.reason, attempt.duration_ms);
        if let Some(settlement) = attempt.settlement {
            self.metrics
                .settled(settlement, attempt.accepted_at_ms, now_ms);
        }
        Carry::Settled {
            attempt: Box::new(attempt),
            place,
            at_ms: now_ms,
            seen,
        }
    }
}

/// The span of an attempt and what follows from it, for the trace and for the lines logged in it.
fn span_of(carried: &Carried) -> Span {
    let delivery = &carried.step.delivery;
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

/// What the attempt says about the endpoint.
fn seen(made: &Made, decision: &Decision) -> Seen {
    match &made.response.outcome {
        Outcome::Unsendable(_) => Seen::Nothing,
        _ if decision.settlement == Settlement::Delivered => Seen::Succeeded {
            latency_ms: made.duration_ms,
        },
        Outcome::Answered { retry_after_ms, .. } => Seen::Failed {
            throttles: decision.throttles,
            hold_ms: retry_after_ms.filter(|_| decision.throttles),
        },
        Outcome::Unanswered(_) => Seen::Failed {
            throttles: decision.throttles,
            hold_ms: None,
        },
    }
}

/// The record of a settlement without an attempt.
fn unmade(
    offset: Offset,
    delivery: &Delivery,
    reason: Reason,
    settlement: Option<Settlement>,
    now_ms: i64,
) -> Attempt {
    Attempt {
        event_id: delivery.event.id.clone(),
        tenant: delivery.event.tenant.clone(),
        event_type: delivery.event.event_type.clone(),
        work: delivery.work_id(),
        number: delivery.attempt,
        started_at_ms: now_ms,
        duration_ms: 0,
        outcome: AttemptOutcome::None,
        reason,
        status: None,
        detail: String::new(),
        response_excerpt: Bytes::new(),
        settlement,
        accepted_at_ms: delivery.event.accepted_at_ms,
        traceparent: current_traceparent()
            .unwrap_or_else(|| delivery.event.trace.traceparent.clone()),
        delivery_offset: Some(offset),
    }
}

/// The detail with a note, within what a detail may be.
fn noted(mut detail: String, note: Option<&str>) -> String {
    if let Some(note) = note {
        let room = DETAIL_BYTES_MAX.saturating_sub(note.len() + 2);
        detail.truncate(detail.floor_char_boundary(room));
        if !detail.is_empty() {
            detail.push_str("; ");
        }
        detail.push_str(note);
    }
    detail
}

fn endpoint_key(delivery: &Delivery) -> Bytes {
    Bytes::copy_from_slice(delivery.endpoint.as_str().as_bytes())
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

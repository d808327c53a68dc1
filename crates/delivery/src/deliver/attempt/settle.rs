//! Carries out what was decided of a delivery.
//!
//! The writes come in the order that makes a crash between any two of them harmless: first what the
//! decision leads to (the endpoint's disabling, the retry, the dead letter), then the attempt. Only
//! when that is durable is the offset resolved. A write that is not acknowledged is repeated; until
//! then nothing moves.

use std::time::Duration;

use bytes::Bytes;
use postrider_daemon::telemetry;
use postrider_log::{NewRecord, Target};
use postrider_model::delivery::{Attempt, AttemptOutcome, DETAIL_BYTES_MAX, Delivery, Settlement};
use postrider_model::endpoint::Endpoint;
use postrider_model::ids::EndpointId;
use postrider_model::operational;
use postrider_model::outcome::Reason;
use postrider_model::topics::{ATTEMPTS, EVENTS, RETRY, event_key};
use postrider_model::verdict::{Decision, Seen};
use postrider_registry::{Lookup, Versioned};
use tokio::time::{sleep, timeout};
use tracing::Span;

use super::{AttemptEnd, AttemptJob, DeliverContext, Exchange, OWN_FAULT_WAIT, traceparent_of};
use crate::dead_letter;
use crate::durable::{TooLarge, append_durably};
use crate::sender::{Sender, WebhookResponse};

const INTERRUPTED_WRITE_TIMEOUT: Duration = Duration::from_secs(1);

impl<S: Sender> DeliverContext<S> {
    /// Settles the delivery as was decided at `now_ms`: when this returns, the settlement is
    /// durable.
    pub(super) async fn settle(
        &self,
        job: &AttemptJob,
        endpoint: Option<&Versioned<Endpoint>>,
        decision: Decision,
        exchange: Option<Exchange>,
        now_ms: i64,
    ) -> AttemptEnd {
        if let (Some(endpoint), Some(reason)) = (endpoint, decision.disables) {
            Box::pin(self.disable(endpoint, reason)).await;
        }
        if decision.attempt == AttemptOutcome::Failed {
            telemetry::fail(&Span::current(), decision.reason.as_str());
        }
        let response = exchange.as_ref().map(|exchange| &exchange.response);
        let (decision, note) = self
            .write_consequence(job, decision, response, now_ms)
            .await;
        let mut attempt = Attempt {
            outcome: decision.attempt,
            settlement: Some(decision.settlement),
            ..self.unattempted(job, decision.reason)
        };
        if let Some(exchange) = exchange {
            attempt.started_at_ms = exchange.started_at_ms;
            attempt.duration_ms = exchange.duration_ms;
            attempt.status = exchange.response.status();
            attempt.detail = exchange.response.detail;
            attempt.response_excerpt = exchange.response.excerpt;
        }
        attempt.detail = noted(attempt.detail, note);
        self.record(job, attempt, decision.seen).await
    }

    /// Writes what the decision leads to, before the attempt is recorded. Answers with what became
    /// of it, and with a note if not all of it was written. What is rare is boxed, so that not
    /// every attempt makes room for it.
    async fn write_consequence(
        &self,
        job: &AttemptJob,
        decision: Decision,
        response: Option<&WebhookResponse>,
        now_ms: i64,
    ) -> (Decision, Option<&'static str>) {
        match decision.settlement {
            Settlement::Delivered | Settlement::Dropped => (decision, None),
            // It keeps its place in its lane, which is told of it when the attempt is recorded.
            Settlement::RetryScheduled { .. } if job.step.delivery.order_key().is_some() => {
                (decision, None)
            }
            Settlement::RetryScheduled { due_at_ms } => {
                let retry = self.schedule_retry(&job.step.delivery, due_at_ms, now_ms);
                match Box::pin(retry).await {
                    Ok(()) => (decision, None),
                    Err(TooLarge) => {
                        let decision = decision.where_it_does_not_fit();
                        Box::pin(self.dead_letter(job, decision, response)).await
                    }
                }
            }
            Settlement::DeadLettered => Box::pin(self.dead_letter(job, decision, response)).await,
        }
    }

    /// Appends the next attempt to the longest delay that fits.
    async fn schedule_retry(
        &self,
        delivery: &Delivery,
        due_at_ms: i64,
        now_ms: i64,
    ) -> Result<(), TooLarge> {
        let retry = Delivery {
            attempt: delivery.attempt + 1,
            due_at_ms,
            ..delivery.clone()
        };
        let delay = Target::Partition(self.ladder.place(due_at_ms - now_ms).unwrap_or(0));
        let record = NewRecord {
            key: Bytes::copy_from_slice(delivery.endpoint.as_str().as_bytes()),
            value: Some(retry.encode()),
            headers: Vec::new(),
        };
        append_durably(&*self.producers.prompt, RETRY, delay, record).await?;
        Ok(())
    }

    async fn dead_letter(
        &self,
        job: &AttemptJob,
        decision: Decision,
        response: Option<&WebhookResponse>,
    ) -> (Decision, Option<&'static str>) {
        let reason = decision.dead_letter_reason.unwrap_or(decision.reason);
        let (detail, status) = response.map_or((String::new(), None), |response| {
            (last_words(response), response.status())
        });
        let now_ms = self.clock.now_ms();
        let letter = dead_letter::of_delivery(&job.step.delivery, reason, detail, status, now_ms);
        let place = (job.partition, job.step.offset);
        match dead_letter::write(&*self.producers.prompt, &self.metrics, letter, place).await {
            Ok(written) => (decision, written.note()),
            Err(TooLarge) => (
                decision.where_it_does_not_fit(),
                Some("no dead letter of it fits into the topic"),
            ),
        }
    }

    /// Disables the endpoint that this attempt was made to, and tells its tenant. A newer version
    /// of it voids the judgement.
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
        if append_durably(&*self.producers.prompt, EVENTS, Target::Key, record)
            .await
            .is_err()
        {
            tracing::error!(endpoint_id = %id, "the operational event is too large for its topic");
        }
    }

    /// Records that the attempt was cut, if that is possible in short time: the partition is about
    /// to leave.
    pub(super) async fn record_interruption(&self, job: &AttemptJob) -> AttemptEnd {
        let attempt = Attempt {
            outcome: AttemptOutcome::Interrupted,
            ..self.unattempted(job, Reason::Interrupted)
        };
        let record = Box::pin(self.record(job, attempt, Seen::Nothing));
        if timeout(INTERRUPTED_WRITE_TIMEOUT, record).await.is_err() {
            tracing::warn!(event_id = %job.step.delivery.event.id, "interruption not recorded in time");
        }
        AttemptEnd::Interrupted
    }

    /// The record of a delivery of which nothing was sent.
    fn unattempted(&self, job: &AttemptJob, reason: Reason) -> Attempt {
        let delivery = &job.step.delivery;
        Attempt {
            event_id: delivery.event.id.clone(),
            tenant: delivery.event.tenant.clone(),
            event_type: delivery.event.event_type.clone(),
            work: delivery.work_id(),
            number: delivery.attempt,
            started_at_ms: self.clock.now_ms(),
            duration_ms: 0,
            outcome: AttemptOutcome::None,
            reason,
            status: None,
            detail: String::new(),
            response_excerpt: Bytes::new(),
            settlement: None,
            accepted_at_ms: delivery.event.accepted_at_ms,
            traceparent: traceparent_of(delivery),
            delivery_offset: Some(job.step.offset),
        }
    }

    /// Appends the attempt, cut down if it is too large; when this returns, the settlement is
    /// durable.
    async fn record(&self, job: &AttemptJob, mut attempt: Attempt, seen: Seen) -> AttemptEnd {
        // The next delivery of an ordering key waits for it, whoever takes the partition over for
        // the record of an interruption, and where nothing was sent, the place of the attempt.
        let somebody_waits = job.step.delivery.order_key().is_some()
            || attempt.settlement.is_none()
            || attempt.outcome == AttemptOutcome::None;
        let producer = match somebody_waits {
            true => &self.producers.prompt,
            false => &self.producers.gathering,
        };
        let place = loop {
            let record = NewRecord {
                key: Bytes::copy_from_slice(attempt.work.endpoint.as_str().as_bytes()),
                value: Some(attempt.encode()),
                headers: Vec::new(),
            };
            let partition = Target::Partition(job.partition);
            match append_durably(&**producer, ATTEMPTS, partition, record).await {
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
        let at_ms = self.clock.now_ms();
        self.metrics
            .attempt_ended(attempt.outcome, attempt.reason, attempt.duration_ms);
        if let Some(settlement) = attempt.settlement {
            telemetry::describe(&Span::current(), "settlement", settlement.as_str());
            self.metrics
                .settled(settlement, attempt.accepted_at_ms, at_ms);
        }
        AttemptEnd::Settled {
            attempt: Box::new(attempt),
            place,
            at_ms,
            seen,
        }
    }
}

/// What a dead letter tells of the last attempt.
fn last_words(response: &WebhookResponse) -> String {
    match response.status() {
        Some(status) => {
            let trouble = Some(&*response.detail).filter(|detail| !detail.is_empty());
            noted(format!("the endpoint answered {status}"), trouble)
        }
        None => response.detail.clone(),
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

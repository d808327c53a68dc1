//! One suite for every log: a difference between two adapters is a bug.
//!
//! A promise is an async function over a [`subject::Subject`]; `promises!` turns all of them into
//! tests of one adapter. What an adapter needs for the suite (how to reopen, truncate, compact it)
//! is its [`subject::Control`].

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "conformance/appends.rs"]
mod appends;
#[path = "conformance/groups.rs"]
mod groups;
#[path = "conformance/kafka.rs"]
mod kafka_log;
#[path = "conformance/logs.rs"]
mod logs;
#[path = "conformance/member.rs"]
mod member;
#[path = "conformance/reads.rs"]
mod reads;
#[path = "conformance/sharing.rs"]
mod sharing;
#[path = "conformance/subject.rs"]
mod subject;

/// Makes a test of each promise for one adapter. The constructor takes the test's name and answers
/// with a subject, or with none where the adapter cannot run.
macro_rules! promises {
    ($adapter:ident, $subject:path) => {
        mod $adapter {
            promises!(@each $subject,
                appends: [
                    survives_reopening,
                    keeps_order_per_partition,
                    places_keys_as_java_clients_do,
                    refuses_what_is_too_large,
                    refuses_what_exceeds_the_queue,
                    fails_for_a_topic_that_does_not_exist,
                    flush_waits_for_every_fate,
                    keeps_headers_and_tombstones,
                ],
                reads: [
                    a_reader_waits_for_the_next_record,
                    answers_with_an_empty_batch_at_the_end,
                    a_batch_keeps_to_its_byte_credit,
                    reads_from_a_time,
                    reads_over_gaps,
                    reads_past_a_gap_at_the_end_one_record_at_a_time,
                    reads_from_the_start_of_a_truncated_log,
                    keeps_the_latest_record_of_each_key,
                    creates_topics_once_and_describes_them,
                ],
                groups: [
                    goes_on_at_the_commit_with_its_metadata,
                    a_paused_partition_gives_nothing_until_resumed,
                    resuming_twice_and_pausing_twice_is_harmless,
                    reads_ahead_no_more_than_allowed,
                    next_can_be_cancelled_at_any_time,
                    a_group_reads_over_gaps,
                    a_group_hears_of_truncation,
                    a_group_hears_that_it_is_beyond_the_end,
                    a_log_that_is_reopened_remembers_commits,
                    metadata_that_are_too_long_are_refused_and_block_nothing,
                    somebody_outside_commits_for_a_group_without_members_only,
                ],
                sharing: [
                    a_joining_member_gets_what_was_drained_and_released,
                    without_room_for_records_a_member_hears_of_its_partitions,
                    a_member_that_does_not_release_loses_after_the_deadline,
                    a_commit_of_an_earlier_generation_is_refused,
                    a_member_that_leaves_hands_over,
                    partitions_are_shared_evenly,
                    a_partition_that_left_while_paused_comes_back_unpaused,
                ],
            );
        }
    };
    (@each $subject:path, $($module:ident: [$($promise:ident,)*],)*) => {
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                if let Some(subject) = $subject(stringify!($promise)).await {
                    super::$module::$promise(subject).await;
                }
            }
        )*)*
    };
}

promises!(memory, crate::logs::memory);
promises!(embedded, crate::logs::embedded);
promises!(embedded_file, crate::logs::embedded_file);
promises!(kafka_classic, crate::kafka_log::classic);
promises!(kafka_consumer, crate::kafka_log::consumer);

//! What an error of Kafka means to users of the port.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::port::{AppendError, CommitError, LogError};

/// For questions, with the topic they were about.
pub(super) fn log_error(topic: &str, error: &KafkaError) -> LogError {
    match error.rdkafka_error_code() {
        Some(code) => code_error(topic, code),
        // Without a code it is the configuration or an impossible name.
        None => LogError::Permanent(error.to_string()),
    }
}

/// The same for a bare code.
pub(super) fn code_error(topic: &str, code: Code) -> LogError {
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            LogError::NoSuchTopic(topic.to_owned())
        }
        code if is_refusal(code) => LogError::Permanent(code.to_string()),
        code => LogError::Unavailable(code.to_string()),
    }
}

/// For appends, as told by the delivery report or at once.
pub(super) fn append_error(error: &KafkaError) -> AppendError {
    match error.rdkafka_error_code() {
        Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize) => AppendError::TooLarge,
        Some(Code::QueueFull) => AppendError::QueueFull,
        Some(
            code @ (Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::InvalidRequiredAcks
            | Code::UnsupportedForMessageFormat
            | Code::UnsupportedCompressionType
            | Code::PolicyViolation),
        ) => AppendError::Failed(code.to_string()),
        Some(code) if is_refusal(code) => AppendError::Failed(code.to_string()),
        _ => AppendError::Unknown(error.to_string()),
    }
}

/// For commits: `Fenced` when the broker says that this member is not who it was.
pub(super) fn commit_error(error: &KafkaError) -> CommitError {
    match error.rdkafka_error_code() {
        Some(
            Code::IllegalGeneration
            | Code::StaleMemberEpoch
            | Code::FencedMemberEpoch
            | Code::UnknownMemberId
            | Code::FencedInstanceId
            | Code::UnreleasedInstanceId
            | Code::AssignmentLost
            | Code::Fenced,
        ) => CommitError::Fenced,
        _ => CommitError::Unknown(error.to_string()),
    }
}

/// Whether a commit is worth repeating. While a rebalance goes on, the broker may count a
/// generation (or epoch) ahead of the member, who keeps its partitions nevertheless; if it does
/// not, it will be told.
pub(super) fn commit_is_early(error: &KafkaError) -> bool {
    let rebalancing = matches!(
        error.rdkafka_error_code(),
        Some(Code::RebalanceInProgress | Code::IllegalGeneration | Code::StaleMemberEpoch)
    );
    rebalancing || coordinator_moved(error)
}

/// Whether another broker coordinates the group by now, or will soon: that of a new installation
/// only just begins to.
pub(super) fn coordinator_moved(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::CoordinatorLoadInProgress | Code::CoordinatorNotAvailable | Code::NotCoordinator
        )
    )
}

/// Whether a question is worth repeating at once, with fresh metadata: another broker leads by now,
/// or will soon, since this one says so or does not answer.
pub(super) fn leader_moved(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::ReplicaNotAvailable
                | Code::OffsetNotAvailable
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::BrokerTransportFailure
        )
    )
}

/// Refusals that stay until somebody changes something.
fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::InvalidTopic
            | Code::InvalidArgument
            | Code::InvalidConfig
            | Code::InvalidPartitions
            | Code::InvalidReplicationFactor
            | Code::InvalidGroupId
            | Code::InvalidSessionTimeout
            | Code::InconsistentGroupProtocol
            | Code::UnsupportedVersion
            | Code::PolicyViolation
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the classic protocol a member has a generation, in the other one an epoch.
    #[test]
    fn a_commit_of_somebody_who_is_no_longer_a_member_is_fenced() {
        for (code, early) in [
            (Code::IllegalGeneration, true),
            (Code::StaleMemberEpoch, true),
            (Code::FencedMemberEpoch, false),
            (Code::UnknownMemberId, false),
            (Code::FencedInstanceId, false),
            (Code::UnreleasedInstanceId, false),
            (Code::AssignmentLost, false),
        ] {
            let error = KafkaError::ConsumerCommit(code);
            assert_eq!(commit_error(&error), CommitError::Fenced, "{code}");
            assert_eq!(commit_is_early(&error), early, "{code}");
        }
        let unknown = KafkaError::ConsumerCommit(Code::RequestTimedOut);
        assert!(matches!(commit_error(&unknown), CommitError::Unknown(_)));
    }
}

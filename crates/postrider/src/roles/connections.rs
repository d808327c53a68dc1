//! How many connections a process may have: as many as are configured, while the files suffice that
//! it may have open.

use super::Config;

/// Files for Kafka's clients, listeners, and questions to the servers of names: a quarter, and at
/// least so many.
const FILES_OF_OTHERS: usize = 256;

/// Connections at a time, of those who call the API and to receivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connections {
    pub(crate) api: usize,
    pub(crate) egress: usize,
}

impl Connections {
    /// Of a process of this role.
    pub(crate) fn of(config: &Config, role: &str, files_max: usize) -> Self {
        let configured = (config.api.connections_max, config.egress.connections_max);
        let (api, egress) = match role {
            "up" => configured,
            "deliver" => (0, configured.1),
            _ => (configured.0, 0),
        };
        let connections = Self::share(files_max, api, egress);
        let attempts = config.delivery.deliver.attempts_in_flight_max;
        if connections.egress < egress.min(attempts) {
            tracing::warn!(
                files_max,
                connections_max = connections.egress,
                attempts_in_flight_max = attempts,
                "the limit of open files leaves fewer connections than attempts may be under way: attempts wait for each other"
            );
        }
        connections
    }

    /// What the files leave. Where they do not suffice for both, each gets at least half of them,
    /// or what it asks for.
    fn share(files_max: usize, api: usize, egress: usize) -> Self {
        let others = FILES_OF_OTHERS.max(files_max / 4);
        let left = files_max.saturating_sub(others).max(2);
        let part = |own: usize, other: usize| own.min((left / 2).max(left.saturating_sub(other)));
        Self {
            api: part(api, egress),
            egress: part(egress, api),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_shared_out_and_some_are_left_for_others() {
        let share = |files_max, api, egress| {
            let shared = Connections::share(files_max, api, egress);
            [shared.api, shared.egress]
        };
        assert_eq!(share(usize::MAX, 4_096, 4_096), [4_096, 4_096]);
        assert_eq!(share(20_000, 4_096, 4_096), [4_096, 4_096]);
        assert_eq!(share(1_024, 4_096, 4_096), [384, 384]);
        assert_eq!(share(1_024, 0, 4_096), [0, 768]);
        assert_eq!(share(1_024, 4_096, 0), [768, 0]);
        assert_eq!(share(1_024, 100, 4_096), [100, 668]);
        assert_eq!(share(4_096, 4_096, 1_024), [2_048, 1_024]);
        assert_eq!(share(100, 4_096, 4_096), [1, 1]);
    }
}

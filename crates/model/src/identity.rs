//! Which registry this is: what tells one installation, and one life of its registry, from another.

/// The identity of a registry. A position of a registry means something only together with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Random, never 0.
    pub id: u64,
    /// The encryption keys that the installation has sealed with, by the names that sealed secrets
    /// have for them, oldest first.
    pub key_ids: Vec<String>,
    /// Ids whose positions mean nothing any more, since an operator accepted that those registries
    /// were lost.
    pub former_ids: Vec<u64>,
    /// Records of the registry were lost, and no operator has accepted that yet.
    pub loss: Option<RegistryLoss>,
}

/// That records of the registry were lost, and how it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryLoss {
    /// When it was found.
    pub found_at_ms: i64,
    /// How it is known, for people.
    pub detail: String,
    /// The registry whose records were lost: the present one, or another if the topic was made
    /// again.
    pub lost_id: u64,
}

/// Which registry view an event was accepted at, or a delivery matched at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RegistryStamp {
    /// The registry's id, 0 if it is not known.
    pub registry_id: u64,
    /// The view's position, 0 for none.
    pub position: u64,
}

impl RegistryStamp {
    /// A position of a registry that is not known.
    pub fn of_unknown(position: u64) -> Self {
        Self {
            registry_id: 0,
            position,
        }
    }
}

//! The data directory of `up`: the log, and beside it the keys generated at first start and where
//! the API was last.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use ring::rand::{SecureRandom, SystemRandom};

const OPERATOR_KEY: &str = "operator.key";
const ENCRYPTION_KEY: &str = "encryption.key";
const API_URL: &str = "api.url";

/// A data directory.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

impl DataDir {
    /// The directory at this path, which need not exist.
    pub(crate) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Creates the directory, for its owner alone, if it does not exist.
    pub(crate) fn create(&self) -> anyhow::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .with_context(|| {
                format!(
                    "create the data directory {}; --data-dir names another",
                    self.0.display()
                )
            })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where the operator key is, if it was generated.
    pub(crate) fn operator_key_path(&self) -> PathBuf {
        self.0.join(OPERATOR_KEY)
    }

    /// Where the encryption keyring is, if it was generated.
    pub(crate) fn encryption_key_path(&self) -> PathBuf {
        self.0.join(ENCRYPTION_KEY)
    }

    /// The operator key that was generated here, if any.
    pub(crate) fn operator_key(&self) -> anyhow::Result<Option<String>> {
        read(&self.operator_key_path())
    }

    /// The operator key, generated if there is none.
    pub(crate) fn ensure_operator_key(&self) -> anyhow::Result<String> {
        ensure(&self.operator_key_path(), generate_operator_key)
    }

    /// The encryption keyring, generated if there is none.
    pub(crate) fn ensure_encryption_key(&self) -> anyhow::Result<String> {
        ensure(&self.encryption_key_path(), generate_encryption_key)
    }

    /// A text under this name, made if there is none, for its owner alone.
    pub(crate) fn ensure_private(
        &self,
        name: &str,
        make: impl FnOnce() -> String,
    ) -> anyhow::Result<String> {
        ensure(&self.0.join(name), make)
    }

    /// Where the API of the process on this directory is, or was.
    pub(crate) fn api_url(&self) -> anyhow::Result<Option<String>> {
        read(&self.0.join(API_URL))
    }

    /// Remembers where the API is, so that commands find it.
    pub(crate) fn remember_api_url(&self, url: &str) -> anyhow::Result<()> {
        write_private(&self.0.join(API_URL), url).context("write where the API is")
    }
}

/// A new operator key.
pub(crate) fn generate_operator_key() -> String {
    let hex: String = random_bytes::<32>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("prk_{hex}")
}

/// A new encryption key.
pub(crate) fn generate_encryption_key() -> String {
    postrider_registry::Keyring::generate_text()
        .trim_end()
        .to_owned()
}

/// Bytes that nobody can guess.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the operating system has a random source");
    bytes
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn ensure(path: &Path, make: impl FnOnce() -> String) -> anyhow::Result<String> {
    if let Some(text) = read(path)? {
        return Ok(text);
    }
    let text = make();
    write_private(path, &text).with_context(|| format!("write {}", path.display()))?;
    Ok(text)
}

/// Writes the whole file or nothing: half a key would be worse than none.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

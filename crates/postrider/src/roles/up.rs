//! `postrider up`: every role in one process, on a log in one directory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::Context;
use postrider_daemon::config::Secret;
use postrider_registry::Keyring;

use super::{Process, api, exporter, log, registry, stages, topics};
use crate::cli::{Stage, UpArgs};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::demo::{self, Demo};
use crate::output;

/// Runs the role until a signal, a failure, or the end of `--for`.
pub(crate) async fn run(args: &UpArgs, mut config: Config) -> anyhow::Result<ExitCode> {
    if args.demo {
        demo::adapt(&mut config);
    }
    let mut process = Process::start(&config, "up", Ipv4Addr::LOCALHOST)?;
    let address = config
        .api
        .listen
        .unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), api::PORT));
    let listener = api::bind(address).await?;
    let url = format!("http://{}", listener.local_addr()?);

    let data_dir = DataDir::at(&config.embedded.data_dir);
    data_dir.create()?;
    let log = log::embedded(&mut process, &config).await?;
    topics::ensure(&process, &log, &config).await?;
    topics::watch(&mut process, log.clone(), config.topics.clone())?;
    let keys = Keys::ensure(&config, &data_dir)?;
    config.ingest.operator_key = Some(Secret::from(keys.operator.clone()));
    let entrance = api::spawn(&mut process, &config, listener)?;
    let registry = registry::open(&mut process, &config, log.clone(), keys.encryption).await?;
    registry::join(&process, &registry).await?;
    registry::record_retry_delays(&process, &registry, &log, &config.topics).await?;

    let halt = process.halt.clone();
    api::open(&entrance, &config, log.clone(), registry.clone(), halt).await?;
    data_dir.remember_api_url(&url)?;
    exporter::spawn(&mut process, &config, log.clone(), registry.clone())?;

    if args.demo {
        // Before the stages start: deliveries left over from the last time wait for its endpoints'
        // new addresses.
        let demo = Demo::prepare(&mut process, &url, keys.operator, log.clone(), &data_dir).await?;
        stages::spawn(&mut process, &config, log, &registry, &Stage::ALL)?;
        return demo.run(process, args.run_for).await;
    }
    stages::spawn(&mut process, &config, log, &registry, &Stage::ALL)?;
    welcome(&url, &process, &keys.operator_place, &data_dir);
    let waited = tokio::select! {
        biased;
        waited = process.wait() => waited,
        () = until(args.run_for) => Ok(()),
    };
    Ok(process.finish(waited).await)
}

/// Sleeps for the time, for ever if there is none.
async fn until(time: Option<std::time::Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// The keys of this installation.
struct Keys {
    operator: String,
    /// Where the operator finds it.
    operator_place: String,
    encryption: Keyring,
}

impl Keys {
    /// Takes them from the configuration, or else from the data directory, where they are generated
    /// once.
    fn ensure(config: &Config, data_dir: &DataDir) -> anyhow::Result<Self> {
        let (operator, operator_place) = match &config.ingest.operator_key {
            Some(key) => (
                key.expose().to_owned(),
                "as configured by `ingest.operator_key`".to_owned(),
            ),
            None => {
                let place = data_dir.operator_key_path().display().to_string();
                (data_dir.ensure_operator_key()?, format!("in {place}"))
            }
        };
        let encryption = match &config.keys.encryption {
            Some(keyring) => {
                Keyring::from_text(keyring.expose()).context("read `keys.encryption`")?
            }
            None => {
                let text = data_dir.ensure_encryption_key()?;
                Keyring::from_text(&text).with_context(|| {
                    format!(
                        "read the encryption key {}",
                        data_dir.encryption_key_path().display()
                    )
                })?
            }
        };
        Ok(Self {
            operator,
            operator_place,
            encryption,
        })
    }
}

/// Says where everything is, and what to try first. The commands work as they are, pasted into a
/// shell.
fn welcome(url: &str, process: &Process, key_place: &str, data_dir: &DataDir) {
    let default = Config::default().embedded.data_dir;
    let mut postrider = std::env::args()
        .next()
        .unwrap_or_else(|| "postrider".to_owned());
    if data_dir.path() != default {
        postrider = format!(
            "{postrider} --data-dir {}",
            quoted(&data_dir.path().display().to_string())
        );
    }
    let text = format!(
        r#"Postrider serves at {url}
  the key is {key_place}
  data is in {data}, health and metrics at http://{health}

Try it, in another terminal. An endpoint, at a URL of yours if WEBHOOK_URL names one:

  {postrider} endpoint create --tenant acme --id ep_first --url "${{WEBHOOK_URL:-https://example.com/webhooks}}"

An event:

  {postrider} event publish --tenant acme --id evt_first --type invoice.paid --data '{{"amount": 4200, "currency": "EUR"}}'

Its attempts:

  {postrider} event show --tenant acme evt_first --wait 20s
"#,
        data = data_dir.path().display(),
        health = process.health_address(),
    );
    output::data(text);
}

/// The text as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_directory_is_one_word_of_a_shell() {
        for text in ["./postrider-data", "/tmp/with space/a'b\"c$d", ""] {
            let echoed = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(echoed.stdout).unwrap(), text);
        }
    }
}

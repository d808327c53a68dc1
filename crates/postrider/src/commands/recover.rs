//! `postrider recover`: where partitions go on of which the committed offsets do not say.

mod registry;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use postrider_delivery::standing::{self, DecideError, PartitionStanding, Standing};
use postrider_log::{Log, Offset, Partition};
use postrider_model::payload::parse_rfc3339;
use postrider_model::topics::{
    DELIVERIES, EVENTS, GROUP_DELIVER, GROUP_FAN_OUT, GROUP_SCHEDULER, RETRY,
};

use crate::cli::{ConfirmArgs, Stage};
use crate::config::Config;
use crate::output;
use crate::roles::log;
use registry::RegistryArgs;

/// Decide where partitions go on that were stopped, because their committed offsets were lost or
/// are those of another log.
///
/// Without --from it only shows which partitions of the stage are stopped. Processes of the stage
/// may run or not.
#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// The stage that was stopped.
    #[arg(long, value_enum, required_unless_present = "registry")]
    stage: Option<Stage>,
    /// This partition only; otherwise every one that is stopped.
    #[arg(long, value_name = "N")]
    partition: Option<Partition>,
    /// Where to go on: `start` or `end` of what the log holds, `undone` for whatever may not have
    /// been done as far as the commit tells, an offset, or a time such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "PLACE", value_parser = place)]
    from: Option<Place>,
    /// Needed where everything that the log holds would be skipped, as by `--from end`.
    #[arg(long)]
    skip_all: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// A place in a partition, as an operator names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    End,
    Undone,
    Offset(Offset),
    TimeMs(i64),
}

fn place(text: &str) -> Result<Place, String> {
    match text {
        "start" => return Ok(Place::Start),
        "end" => return Ok(Place::End),
        "undone" => return Ok(Place::Undone),
        _ => {}
    }
    if let Ok(offset) = text.parse::<Offset>()
        && offset >= 0
    {
        return Ok(Place::Offset(offset));
    }
    let time = parse_rfc3339(text).map(Place::TimeMs);
    time.ok_or_else(|| {
        "must be `start`, `end`, `undone`, an offset, or a time as in RFC 3339".to_owned()
    })
}

/// Runs the command.
pub(crate) async fn run(args: &RecoverArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let log = log::kafka(config)?;
    let Some(stage) = args.stage else {
        return registry::run(&args.registry, &args.confirm, log, config).await;
    };
    let (group, topic) = group_of(stage);
    let standings = standing::standings(&*log, group, topic).await?;
    let stopped = chosen(args, topic, &standings)?;
    if stopped.is_empty() {
        output::talk(format!("No partition of {topic} is stopped."));
        return Ok(ExitCode::SUCCESS);
    }
    let Some(from) = args.from else {
        show(&stopped, None);
        output::talk("Say --from to decide where they go on.");
        return Ok(ExitCode::SUCCESS);
    };
    let offsets = offsets(&*log, topic, from, &stopped).await?;
    show(&stopped, Some(&offsets));
    let skips_all =
        |one: &&PartitionStanding| skipped(one, &offsets) > 0 && left(one, &offsets) == 0;
    if !args.skip_all && stopped.iter().any(skips_all) {
        bail!(
            "everything that a partition holds would be skipped and never done; if that is meant, say --skip-all"
        );
    }
    let question = format!(
        "Let {group} go on there in {} of {topic}?",
        count(stopped.len(), "partition")
    );
    output::confirm(&question, args.confirm.yes)?;
    let decisions = stopped.iter().map(|one| {
        let offset = offset_of(one, &offsets);
        (one.partition, one.standing.decided(offset))
    });
    match standing::decide(&*log, group, topic, decisions.collect()).await {
        Ok(()) => {}
        Err(error @ DecideError::NotTaken(_)) => {
            return Err(error).context(format!(
                "the group {group} has members; see that a process that runs this stage is healthy, or stop all of them, \
                 and try again"
            ));
        }
        Err(error) => return Err(error.into()),
    }
    for (partition, offset) in offsets {
        output::data(format!("partition {partition} goes on at {offset}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn group_of(stage: Stage) -> (&'static str, &'static str) {
    match stage {
        Stage::FanOut => (GROUP_FAN_OUT, EVENTS),
        Stage::Deliver => (GROUP_DELIVER, DELIVERIES),
        Stage::Scheduler => (GROUP_SCHEDULER, RETRY),
    }
}

/// The partitions to decide about. One that has a proper commit is not moved: what was done after
/// it would be done again, what comes before it would be lost.
fn chosen<'a>(
    args: &RecoverArgs,
    topic: &str,
    standings: &'a [PartitionStanding],
) -> anyhow::Result<Vec<&'a PartitionStanding>> {
    let Some(partition) = args.partition else {
        let stopped = standings.iter().filter(|one| one.standing.is_unknown());
        return Ok(stopped.collect());
    };
    let Some(one) = standings.iter().find(|one| one.partition == partition) else {
        bail!("{topic} has no partition {partition}");
    };
    match one.standing {
        Standing::At(offset) => {
            bail!("partition {partition} is not stopped: it goes on at {offset}")
        }
        Standing::NoCommit
        | Standing::BeyondEnd(_)
        | Standing::Diverged(_)
        | Standing::MadeAgain
        | Standing::StatesLost(_) => Ok(vec![one]),
    }
}

async fn offsets(
    log: &dyn Log,
    topic: &str,
    from: Place,
    stopped: &[&PartitionStanding],
) -> anyhow::Result<BTreeMap<Partition, Offset>> {
    if matches!(from, Place::Offset(_)) && stopped.len() > 1 {
        bail!("an offset is a place in one partition; say which one with --partition");
    }
    let mut offsets = BTreeMap::new();
    for one in stopped {
        let (partition, bounds) = (one.partition, one.bounds);
        let offset = match from {
            Place::Start => bounds.start,
            Place::End => bounds.end,
            Place::Undone => one.undone_from(log, topic).await?,
            Place::Offset(offset) if (bounds.start..=bounds.end).contains(&offset) => offset,
            Place::Offset(_) => bail!(
                "partition {partition} holds offsets {} to {}",
                bounds.start,
                bounds.end
            ),
            Place::TimeMs(time_ms) => log
                .offset_for_time(topic, partition, time_ms)
                .await?
                .clamp(bounds.start, bounds.end),
        };
        offsets.insert(partition, offset);
    }
    Ok(offsets)
}

fn show(stopped: &[&PartitionStanding], offsets: Option<&BTreeMap<Partition, Offset>>) {
    let mut heading = vec!["PARTITION", "START", "END"];
    if offsets.is_some() {
        heading.extend(["GOES ON AT", "SKIPPED", "READ, PERHAPS AGAIN"]);
    }
    heading.push("WHY IT IS STOPPED");
    let row = |one: &&PartitionStanding| {
        let mut row = vec![
            one.partition.to_string(),
            one.bounds.start.to_string(),
            one.bounds.end.to_string(),
        ];
        if let Some(offsets) = offsets {
            row.push(offset_of(one, offsets).to_string());
            row.push(skipped(one, offsets).to_string());
            row.push(left(one, offsets).to_string());
        }
        row.push(one.standing.to_string());
        row
    };
    output::table(&heading, &stopped.iter().map(row).collect::<Vec<_>>());
}

fn offset_of(one: &PartitionStanding, offsets: &BTreeMap<Partition, Offset>) -> Offset {
    offsets.get(&one.partition).copied().unwrap_or_default()
}

/// Offsets that would be left out, roughly as many records.
fn skipped(one: &PartitionStanding, offsets: &BTreeMap<Partition, Offset>) -> i64 {
    offset_of(one, offsets) - one.bounds.start
}

/// Offsets that would be read, roughly as many records.
fn left(one: &PartitionStanding, offsets: &BTreeMap<Partition, Offset>) -> i64 {
    one.bounds.end - offset_of(one, offsets)
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_end_an_offset_or_a_time() {
        assert_eq!(place("start"), Ok(Place::Start));
        assert_eq!(place("end"), Ok(Place::End));
        assert_eq!(place("undone"), Ok(Place::Undone));
        assert_eq!(place("0"), Ok(Place::Offset(0)));
        assert_eq!(place("1234567"), Ok(Place::Offset(1_234_567)));
        assert_eq!(place("1970-01-01T00:00:01Z"), Ok(Place::TimeMs(1_000)));
        for wrong in ["", "-1", "beginning", "yesterday", "2026-01-31", "1.5"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}

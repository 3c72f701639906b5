//! `phalanx tenant`: who pays for requests, and how much they may use.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command};
use phalanx_proto::change::Change;
use phalanx_proto::id::TenantName;
use phalanx_proto::view::{CachePolicy, ClusterView, Tenant, TenantLimits};
use serde_json::{Value, json};

use super::limit::{self, Limit};
use super::nearest::unknown;
use super::session::{Seen, Session};
use super::table::{Column, Table};
use super::{Answer, group, list, new_name, required, unknown_action, word};
use crate::failure::Failure;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Who there is.
    List { is_stale: bool },
    /// A tenant with these limits; what is not said stays.
    Set(Box<Wish>),
    /// No such tenant any more.
    Remove(TenantName),
}

/// What a tenant shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    name: TenantName,
    requests_per_minute: Limit<u64>,
    tokens_per_minute: Limit<u64>,
    concurrency: Limit<u32>,
    budget_tokens_per_day: Limit<u64>,
    priority: Option<u32>,
    cache: Option<CachePolicy>,
}

pub(super) fn command() -> Command {
    let name = || required("name", "TENANT", "The tenant");
    let caches = ["off", "exact", "semantic"];
    group("tenant", "Look at the tenants and say what they may use")
        .subcommand(list("Show the tenants and their limits"))
        .subcommand(
            Command::new("set")
                .about(
                    "Create or change a tenant; what is not said stays, and begins without limits",
                )
                .arg(name())
                .arg(limit::arg::<u64>("rpm", "Requests a minute"))
                .arg(limit::arg::<u64>("tpm", "Tokens a minute"))
                .arg(limit::arg::<u32>("concurrency", "Requests in flight"))
                .arg(limit::arg::<u64>("budget", "Tokens a day"))
                .arg(
                    Arg::new("priority")
                        .long("priority")
                        .value_name("P")
                        .value_parser(clap::value_parser!(u32))
                        .help("Larger ones go first when there is a queue; 0 at first"),
                )
                .arg(
                    Arg::new("cache")
                        .long("cache")
                        .value_name("POLICY")
                        .value_parser(PossibleValuesParser::new(caches))
                        .help("Which cached answers are taken; off at first"),
                ),
        )
        .subcommand(
            Command::new("remove")
                .about("Forget a tenant all of whose keys are revoked, and those keys")
                .arg(name()),
        )
}

// === impl Action ===

impl Action {
    pub(super) fn parse(action: &str, matches: &ArgMatches) -> Result<Self, Failure> {
        let name = || word(matches, "name").map(TenantName::from);
        match action {
            "list" => Ok(Self::List { is_stale: matches.get_flag("stale") }),
            "set" => Ok(Self::Set(Box::new(Wish {
                name: new_name(matches, "name")?.into(),
                requests_per_minute: limit::of(matches, "rpm"),
                tokens_per_minute: limit::of(matches, "tpm"),
                concurrency: limit::of(matches, "concurrency"),
                budget_tokens_per_day: limit::of(matches, "budget"),
                priority: matches.get_one("priority").copied(),
                cache: matches.get_one::<String>("cache").map(|policy| match policy.as_str() {
                    "exact" => CachePolicy::Exact,
                    "semantic" => CachePolicy::Semantic,
                    _ => CachePolicy::Off,
                }),
            }))),
            "remove" => name().map(Self::Remove),
            other => Err(unknown_action("tenant", other)),
        }
    }

    pub(super) async fn run(self, session: &mut Session) -> Result<Answer, Failure> {
        match self {
            Self::List { is_stale } => Ok(tenants(&session.read_to_show(is_stale).await?)),
            Self::Set(wish) => {
                let seen = session.read().await?;
                let tenant = wish.over(seen.view.tenants.get(&wish.name));
                let row = row(&tenant);
                let text = format!("tenant {} is set", tenant.name);
                Ok(Answer::done(text, row, session.submit(Change::PutTenant(tenant)).await?))
            }
            Self::Remove(name) => {
                check_known(&session.read().await?.view, &name)?;
                let row = json!({"name": name.as_str(), "removed": true});
                let text = format!("tenant {name} is no more");
                Ok(Answer::done(text, row, session.submit(Change::RemoveTenant(name)).await?))
            }
        }
    }
}

// === impl Wish ===

impl Wish {
    /// The tenant that is wished for, where `current` was.
    fn over(&self, current: Option<&Tenant>) -> Tenant {
        let limits = current.map(|tenant| tenant.limits).unwrap_or_default();
        Tenant {
            name: self.name.clone(),
            limits: TenantLimits {
                requests_per_minute: self.requests_per_minute.over(limits.requests_per_minute),
                tokens_per_minute: self.tokens_per_minute.over(limits.tokens_per_minute),
                concurrency: self.concurrency.over(limits.concurrency),
                budget_tokens_per_day: self
                    .budget_tokens_per_day
                    .over(limits.budget_tokens_per_day),
            },
            priority: self.priority.or(current.map(|tenant| tenant.priority)).unwrap_or_default(),
            cache: self.cache.or(current.map(|tenant| tenant.cache)).unwrap_or_default(),
        }
    }
}

/// Refuses a tenant that does not exist.
pub(super) fn check_known(view: &ClusterView, name: &TenantName) -> Result<(), Failure> {
    if view.tenants.contains_key(name) {
        return Ok(());
    }
    Err(unknown("tenant", name.as_str(), view.tenants.keys().map(TenantName::as_str)))
}

fn tenants(seen: &Seen) -> Answer {
    let mut table = Table::new([
        Column::Left("TENANT"),
        Column::Right("RPM"),
        Column::Right("TPM"),
        Column::Right("CONCURRENCY"),
        Column::Right("BUDGET"),
        Column::Right("PRIORITY"),
        Column::Left("CACHE"),
    ]);
    for Tenant { name, limits, priority, cache } in seen.view.tenants.values() {
        table.row([
            name.to_string(),
            limit::shown(limits.requests_per_minute),
            limit::shown(limits.tokens_per_minute),
            limit::shown(limits.concurrency),
            limit::shown(limits.budget_tokens_per_day),
            priority.to_string(),
            cache_name(*cache).to_owned(),
        ]);
    }
    let rows = seen.view.tenants.values().map(row).collect();
    seen.answer(table.or("there is no tenant"), "tenants", rows)
}

fn row(tenant: &Tenant) -> Value {
    let Tenant { name, limits, priority, cache } = tenant;
    json!({
        "name": name.as_str(),
        "rpm": limits.requests_per_minute,
        "tpm": limits.tokens_per_minute,
        "concurrency": limits.concurrency,
        "budget": limits.budget_tokens_per_day,
        "priority": priority,
        "cache": cache_name(*cache),
    })
}

const fn cache_name(policy: CachePolicy) -> &'static str {
    match policy {
        CachePolicy::Off => "off",
        CachePolicy::Exact => "exact",
        CachePolicy::Semantic => "semantic",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(words: &[&str]) -> Wish {
        let matches = command().try_get_matches_from([&["tenant", "set"], words].concat()).unwrap();
        match Action::parse("set", matches.subcommand().unwrap().1) {
            Ok(Action::Set(wish)) => *wish,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_said_stays() {
        let first =
            wish(&["acme", "--rpm", "60", "--budget", "1000", "--cache", "exact"]).over(None);
        let expected = r#"{"name":"acme","rpm":60,"tpm":null,"concurrency":null,"budget":1000,"priority":0,"cache":"exact"}"#;
        assert_eq!(row(&first).to_string(), expected);
        let second = wish(&["acme", "--rpm", "none", "--priority", "3"]).over(Some(&first));
        let expected = r#"{"name":"acme","rpm":null,"tpm":null,"concurrency":null,"budget":1000,"priority":3,"cache":"exact"}"#;
        assert_eq!(row(&second).to_string(), expected);
    }

    #[test]
    fn tenants_are_shown_with_their_limits() {
        let tenant =
            wish(&["acme", "--rpm", "60", "--tpm", "9000", "--concurrency", "8"]).over(None);
        let view = ClusterView {
            tenants: [(tenant.name.clone(), tenant)].into(),
            ..ClusterView::default()
        };
        let expected = "TENANT  RPM   TPM  CONCURRENCY  BUDGET  PRIORITY  CACHE
acme     60  9000            8       -         0  off
";
        assert_eq!(tenants(&Seen::for_test(view.clone(), false)).text, expected);
        let line = "tenant amce is not known; did you mean acme?".to_owned();
        assert_eq!(check_known(&view, &"amce".into()), Err(Failure::Failed(line)));
    }
}

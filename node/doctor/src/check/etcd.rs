//! etcd: its members, and known defects of their versions.

use std::cmp::Ordering;

use node_api::{EtcdMember, StoreStatus};

use super::text::count;
use crate::finding::Finding;

type Version = (u32, u32, u32);

/// The first release of each maintained minor without the watch permission bypass CVE-2026-73499.
const FLOORS: [Version; 3] = [(3, 5, 33), (3, 6, 14), (3, 7, 1)];
/// The defect that these releases fix.
const FLOOR_REASON: &str = "watch permission bypass, CVE-2026-73499";
/// Defects of 3.4, with the first release without them. 3.4 is at its end of life.
const FIXES_OF_3_4: [(Version, &str); 6] = [
    ((3, 4, 24), "duplicate watch events"),
    ((3, 4, 25), "watches that go back in time"),
    ((3, 4, 31), "lost events and wrongly revoked leases"),
    ((3, 4, 32), "a revision that decreases"),
    ((3, 4, 36), "missed deletes"),
    ((3, 4, 38), "leases reported renewed though revoked"),
];

pub(super) fn members(store: &StoreStatus) -> Finding {
    const CHECK: &str = "etcd-members";
    if store.kind != "etcd" {
        return Finding::ok(CHECK, format!("none: the store is {}", store.kind));
    }
    let total = store.members.len();
    let silent: Vec<String> = (store.members.iter())
        .filter(|member| !member.healthy)
        .map(|member| format!("{} ({})", member.endpoint, member.error.as_deref().unwrap_or("not healthy")))
        .collect();
    let healthy = total - silent.len();
    let seen = format!("{healthy} of {total} healthy; unhealthy: {}", silent.join(", "));
    let remedy = "warren status; on the member: systemctl status etcd, etcdctl endpoint health --cluster; is its client port open from here?";
    match () {
        () if total == 0 => Finding::warn(CHECK, "no member is known yet", "warren status; warrend check"),
        () if silent.is_empty() => Finding::ok(CHECK, format!("{total} of {total} healthy")),
        () if healthy * 2 > total => Finding::warn(CHECK, seen, remedy),
        () => Finding::fail(
            CHECK,
            format!("{seen}: flows go on, new label sets and CIDRs have to wait"),
            remedy,
        ),
    }
}

pub(super) fn connection(store: &StoreStatus) -> Finding {
    const CHECK: &str = "store";
    if !store.connected {
        let why = store.error.as_deref().unwrap_or("the watch does not run");
        return Finding::fail(
            CHECK,
            format!("not connected: {why}"),
            "warren status; etcdctl endpoint status --cluster; warrend check (endpoints, certificates, user)",
        );
    }
    if let Some(first) = store.rejected.first() {
        let key = first.split(": ").next().unwrap_or(first);
        return Finding::warn(
            CHECK,
            format!("{} rejected, first {first}", count(store.rejected.len(), "record")),
            format!(
                "etcdctl get {key} --print-value-only | jq; upgrade the older node, or correct the writer"
            ),
        );
    }
    match store.revision {
        Some(revision) => Finding::ok(CHECK, format!("connected, revision {revision}")),
        None => Finding::ok(CHECK, "connected, the first listing runs"),
    }
}

pub(super) fn lease(store: &StoreStatus) -> Finding {
    const CHECK: &str = "lease";
    if store.lease_held {
        return Finding::ok(CHECK, "held");
    }
    let why = store.lease_error.as_deref().unwrap_or("not requested yet");
    Finding::warn(
        CHECK,
        format!("not held ({why}): other nodes see this one alive by gossip only"),
        "warren status; it comes back with etcd: etcdctl endpoint status --cluster",
    )
}

pub(super) fn versions(store: &StoreStatus) -> Finding {
    const CHECK: &str = "etcd-version";
    if store.kind != "etcd" {
        return Finding::ok(CHECK, format!("none: the store is {}", store.kind));
    }
    let mut known: Vec<&str> = store.members.iter().filter_map(|member| member.version.as_deref()).collect();
    known.sort_unstable();
    known.dedup();
    if known.is_empty() {
        return Finding::unknown(
            CHECK,
            "no member reported its version",
            "etcdctl endpoint status --cluster",
        );
    }
    let bad: Vec<String> =
        known.iter().filter_map(|text| Some(format!("{text}: {}", defects(parse(text)?)?))).collect();
    if bad.is_empty() {
        return Finding::ok(CHECK, known.join(", "));
    }
    let endpoint = (store.members.iter())
        .find(|member: &&EtcdMember| member.version.is_some())
        .map_or("", |member| &member.endpoint);
    let floors: Vec<String> = FLOORS.iter().map(|&version| write(version)).collect();
    Finding::warn(
        CHECK,
        bad.join("; "),
        format!(
            "upgrade etcd member by member to {} or newer, one minor at a time; check with: etcdctl --endpoints {endpoint} endpoint status --cluster",
            floors.join(", ")
        ),
    )
}

/// The known defects of a release.
fn defects(version: Version) -> Option<String> {
    let (major, minor, _) = version;
    match (major, minor).cmp(&(3, 4)) {
        Ordering::Less => Some("end of life, not tested with Warren".to_owned()),
        Ordering::Equal => {
            let missing: Vec<&str> = FIXES_OF_3_4
                .iter()
                .filter(|(fixed, _)| version < *fixed)
                .map(|(_, reason)| *reason)
                .collect();
            let with =
                if missing.is_empty() { String::new() } else { format!(", with {}", missing.join(", ")) };
            Some(format!("end of life{with} ({FLOOR_REASON})"))
        }
        Ordering::Greater => {
            let floor = FLOORS.iter().find(|floor| (floor.0, floor.1) == (major, minor))?;
            (version < *floor).then(|| format!("{FLOOR_REASON}, fixed in {}", write(*floor)))
        }
    }
}

/// `3.6.0-rc.1` counts as 3.6.0.
fn parse(text: &str) -> Option<Version> {
    let core = text.split(['-', '+']).next()?;
    let mut parts = core.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

fn write((major, minor, patch): Version) -> String {
    format!("{major}.{minor}.{patch}")
}

#[cfg(test)]
mod tests {
    use node_api::testing;

    use super::*;
    use crate::{
        check::expect::expect,
        finding::Verdict::{Fail, Ok, Unknown, Warn},
    };

    fn member(version: Option<&str>, error: Option<&str>) -> EtcdMember {
        EtcdMember {
            endpoint: "http://192.0.2.1:2379".to_owned(),
            healthy: error.is_none(),
            version: version.map(str::to_owned),
            leader: None,
            db_bytes: None,
            error: error.map(str::to_owned),
        }
    }

    fn store(members: Vec<EtcdMember>) -> StoreStatus {
        StoreStatus { members, ..testing::status().store }
    }

    #[test]
    fn etcd_version_defects_are_named() {
        let check = |version: &str, verdict, seen, remedy| {
            expect(versions(&store(vec![member(Some(version), None)])), verdict, seen, remedy);
        };
        check("3.3.10", Warn, "not tested", "3.5.33, 3.6.14, 3.7.1");
        check("3.4.23", Warn, "with duplicate watch events, watches that go back", "member by member");
        check("3.4.35", Warn, "with missed deletes, leases reported", "3.5.33");
        check("3.4.38", Warn, "3.4.38: end of life (watch permission", "3.5.33");
        check("3.5.32", Warn, "CVE-2026-73499, fixed in 3.5.33", "http://192.0.2.1:2379");
        check("3.5.33", Ok, "3.5.33", "");
        check("3.6.14-rc.1", Ok, "3.6.14-rc.1", "");
        check("3.6.13", Warn, "fixed in 3.6.14", "3.6.14");
        check("3.7.0", Warn, "fixed in 3.7.1", "3.7.1");
        check("3.8.0", Ok, "3.8.0", "");
        check("main", Ok, "main", "");
    }

    #[test]
    fn etcd_versions_of_several_members() {
        let members =
            vec![member(Some("3.5.33"), None), member(Some("3.5.9"), None), member(None, Some("refused"))];
        expect(versions(&store(members)), Warn, "3.5.9: watch permission bypass", "upgrade etcd");
        expect(versions(&store(vec![member(None, Some("refused"))])), Unknown, "no member", "etcdctl");
        let memory = StoreStatus { kind: "memory".to_owned(), ..store(Vec::new()) };
        expect(versions(&memory), Ok, "the store is memory", "");
    }

    #[test]
    fn etcd_members_are_a_quorum_or_not() {
        let check = |healthy: usize, silent: usize, verdict, seen, remedy| {
            let mut members = vec![member(Some("3.5.33"), None); healthy];
            members.resize(healthy + silent, member(None, Some("connection refused")));
            expect(super::members(&store(members)), verdict, seen, remedy);
        };
        check(3, 0, Ok, "3 of 3 healthy", "");
        check(2, 1, Warn, "2 of 3 healthy; unhealthy: http://192.0.2.1:2379 (connection refused)", "etcdctl");
        check(1, 2, Fail, "1 of 3 healthy", "systemctl status etcd");
        check(2, 2, Fail, "2 of 4", "etcdctl");
        check(0, 0, Warn, "no member", "warrend check");
    }

    #[test]
    fn etcd_watch_and_lease() {
        let fine = testing::status().store;
        expect(connection(&fine), Ok, "connected, revision 42", "");
        expect(lease(&fine), Ok, "held", "");
        let lost = StoreStatus {
            connected: false,
            error: Some("no member answered".to_owned()),
            lease_held: false,
            lease_error: Some("deadline exceeded".to_owned()),
            ..fine.clone()
        };
        expect(connection(&lost), Fail, "no member answered", "etcdctl");
        expect(lease(&lost), Warn, "deadline exceeded", "etcdctl");
        let rejected = vec!["/warren/v1/demo/nodes/n9: unknown version 7".to_owned()];
        let strange = StoreStatus { rejected, ..fine };
        expect(connection(&strange), Warn, "1 record rejected", "etcdctl get /warren/v1/demo/nodes/n9 ");
    }
}

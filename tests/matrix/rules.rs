//! The money rules, as far as they can be seen from outside, after a restart.
//! Knows the statement, the audit and the teacher's bill; must not know how the process died.
//! Invariant: each rule is held against something that the process did not write: the bill, or what a client was shown.

use super::cell::{Cell, Left, chat};
use super::lane::{Asked, Lane};
use crate::support::{Client, Statement, content};
use serde_json::{Value, json};

/// What a cell did, and what its clients were told.
pub(super) struct Seen<'a> {
    pub(super) cell: Cell,
    pub(super) name: &'a str,
    pub(super) asked: &'a [Asked],
}

/// The same question in another spelling: white space is no part of a key (rule 9).
fn respelled(body: &str) -> String {
    let parsed: Value = serde_json::from_str(body).unwrap();
    serde_json::to_string_pretty(&parsed).unwrap()
}

impl Lane {
    pub(super) async fn check(&self, seen: &Seen<'_>) {
        let client = self.client();
        let before = self.upstream.bill();
        let statement = client.statement().await;
        // Rule 1 for every budget, and rule 5: the bill lies between what is settled and what is counted.
        statement.assert_within_limits();
        statement.assert_covers(before, self.upstream.bill());
        self.check_cell(seen, &statement);
        self.check_replay(seen, &client).await;
        self.check_newcomer(seen, &client).await;
        self.check_audit(seen);
    }

    /// Each call of the cell is where the step at which it ended puts it, and the teacher was asked at most once.
    fn check_cell(&self, seen: &Seen<'_>, statement: &Statement) {
        let Seen { cell, name, .. } = seen;
        assert_eq!(statement.total("reserved").calls, 0, "{cell:?}: a hold of the dead process is under way");
        let (calls, left) = (self.kind.calls(), cell.left());
        let budget = statement.budget(name);
        let [settled, unknown] = ["settled", "unknown"].map(|part| budget[part]["calls"].as_u64().unwrap());
        // The bystander's call is always unknown: its hold was synced before the teacher was asked (rule 4).
        let expected = match left {
            Left::Nothing => (0, 1),
            Left::Unknown => (0, 1 + calls),
            Left::Known => (calls, 1),
        };
        assert_eq!((settled, unknown), expected, "{cell:?}: {budget}");
        let charges = self.upstream.charges();
        let mine = charges
            .iter()
            .filter(|charge| charge.items.iter().any(|item| item.starts_with(&format!("trigger {name} "))));
        let mine: u64 = mine.map(|charge| charge.inferences).sum();
        // Rule 8: never twice; rule 4: never without a hold that outlives the process.
        assert_eq!(mine, if cell.is_charged() { calls } else { 0 }, "{cell:?}: {charges:?}");
    }

    /// Rules 4 and 10: what a client got in full is known, and what it did not get is asked of nobody.
    async fn check_replay(&self, seen: &Seen<'_>, client: &Client) {
        let Seen { cell, asked, .. } = seen;
        let replay = client.with("x-tuition-mode", "replay");
        let charges = self.upstream.asked();
        for Asked { request: (path, body), content: told, .. } in *asked {
            let reply = replay.post(path, respelled(body)).await.unwrap();
            match cell.left() {
                Left::Known => {
                    assert_eq!((reply.status, reply.header("x-tuition-outcome")), (200, "known"), "{cell:?}");
                    let known = content(&reply.body).unwrap();
                    assert!(told.as_ref().is_none_or(|told| *told == known), "{cell:?}: {told:?} {known}");
                }
                _ => {
                    assert_eq!(told, &None, "{cell:?}: an answer that was shown is not in the record");
                    let told = (reply.status, reply.header("x-should-retry"));
                    assert_eq!(told, (409, "false"), "{cell:?}: {reply:?}");
                }
            }
        }
        assert_eq!(self.upstream.asked(), charges, "{cell:?}: replay asked the teacher");
    }

    /// Rules 1 and 6: whoever comes next under the same budget gets what is left, or is refused by name.
    async fn check_newcomer(&self, seen: &Seen<'_>, client: &Client) {
        let Seen { cell, name, .. } = seen;
        let client = client.with("x-tuition-run", name);
        let (path, body) = chat(&format!("newcomer {name}"), false);
        let (charged, applied) = (self.upstream.charges().len(), self.control.passed("index-applied"));
        let reply = client.post(path, body).await.unwrap();
        if cell.left() == Left::Nothing {
            assert_eq!((reply.status, reply.header("x-tuition-outcome")), (200, "bought"), "{cell:?}");
            self.control.passes("index-applied", applied).await;
            return;
        }
        assert_eq!((reply.status, reply.header("x-should-retry")), (402, "false"), "{cell:?}: {reply:?}");
        let error = &reply.json()["error"];
        assert_eq!((&error["code"], &error["budget"]), (&json!("budget_exhausted"), &json!(name)));
        assert_eq!(self.upstream.charges().len(), charged, "{cell:?}: refused and asked all the same");
    }

    /// The chain and both folds agree, and every unknown call is listed.
    fn check_audit(&self, seen: &Seen<'_>) {
        let audit = self.server.json(&["audit", "--verify"], 0);
        assert_eq!(audit["discrepancies"], json!([]), "{:?}", seen.cell);
        let listed: u64 = audit["unknown"]
            .as_array()
            .expect("`unknown` is a list")
            .iter()
            .filter(|hold| hold["run"] == seen.name)
            .map(|hold| hold["calls"].as_u64().unwrap())
            .sum();
        let expected = 1 + if seen.cell.left() == Left::Unknown { self.kind.calls() } else { 0 };
        assert_eq!(listed, expected, "{:?}: unknown calls that nobody lists", seen.cell);
    }

    /// Everything that any client ever got in full is known.
    pub(super) async fn knows(&self, asked: &[Asked], when: &str) {
        let replay = self.client().with("x-tuition-mode", "replay");
        for Asked { request, content, .. } in asked {
            let known = self.ask(&replay, request.clone()).await;
            assert_eq!(&known.content, content, "{when}: {request:?}");
        }
    }
}

//! Selectors: which label sets a service or policy means, in Kubernetes' well-known form.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{LabelError, Labels};

/// The most expressions in one selector, and the most values in one expression: far above what people
/// write, far below what makes a policy slow.
pub const MAX_SELECTOR_PARTS: usize = 64;

/// Selects label sets: all of `match_labels` and all of `match_expressions` must hold. Empty: every set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selector {
    /// Labels that the set has with just these values.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub match_labels: Labels,
    /// Further requirements.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement on one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// Values for `In` and `NotIn`, none for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// What a requirement asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operator {
    /// The key is there with one of the values.
    In,
    /// The key is not there, or has none of the values.
    NotIn,
    /// The key is there.
    Exists,
    /// The key is not there.
    DoesNotExist,
}

/// Why a selector is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// A key or value that no label can have: the requirement could not mean what was intended.
    #[error("selector: {0}")]
    Label(#[from] LabelError),
    /// `In` or `NotIn` without values.
    #[error("selector: {operator:?} on {key:?} needs values")]
    NoValues {
        /// The key.
        key: String,
        /// The operator.
        operator: Operator,
    },
    /// `Exists` or `DoesNotExist` with values.
    #[error("selector: {operator:?} on {key:?} takes no values")]
    Values {
        /// The key.
        key: String,
        /// The operator.
        operator: Operator,
    },
    /// More than [`MAX_SELECTOR_PARTS`].
    #[error("selector: {0} expressions or values, at most {MAX_SELECTOR_PARTS} are allowed")]
    TooMany(usize),
}

impl Selector {
    /// Checks what the types cannot; whoever takes a manifest in calls it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), SelectorError> {
        let limit =
            |count| if count > MAX_SELECTOR_PARTS { Err(SelectorError::TooMany(count)) } else { Ok(()) };
        limit(self.match_expressions.len())?;
        for requirement in &self.match_expressions {
            let Requirement { key, operator, values } = requirement;
            limit(values.len())?;
            Labels::new(BTreeMap::from([(key.clone(), String::new())]))?;
            match operator {
                Operator::In | Operator::NotIn if values.is_empty() => {
                    return Err(SelectorError::NoValues { key: key.clone(), operator: *operator });
                }
                Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                    return Err(SelectorError::Values { key: key.clone(), operator: *operator });
                }
                _ => {}
            }
            for value in values {
                Labels::new(BTreeMap::from([(key.clone(), value.clone())]))?;
            }
        }
        Ok(())
    }

    /// Whether a label set is meant.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let listed = value.is_some_and(|value| self.values.iter().any(|other| other == value));
        match self.operator {
            Operator::In => listed,
            Operator::NotIn => !listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, operator: Operator, values: &[&str]) -> Selector {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let requirement = Requirement { key: key.to_owned(), operator, values };
        Selector { match_labels: Labels::default(), match_expressions: vec![requirement] }
    }

    #[test]
    fn selector_operators_mean_what_kubernetes_means() {
        let check = |operator, values: &[&str], expected: [bool; 3]| {
            let selector = one("app", operator, values);
            assert_eq!(selector.validate(), Ok(()));
            let found =
                ["app=web", "app=db", "tier=1"].map(|labels| selector.matches(&labels.parse().unwrap()));
            assert_eq!(found, expected, "{operator:?} {values:?}");
        };
        check(Operator::In, &["web", "mail"], [true, false, false]);
        check(Operator::NotIn, &["web"], [false, true, true]);
        check(Operator::Exists, &[], [true, true, false]);
        check(Operator::DoesNotExist, &[], [false, false, true]);
    }

    #[test]
    fn selector_needs_every_part_and_the_empty_one_matches_all() {
        let mut selector = one("tier", Operator::Exists, &[]);
        selector.match_labels = "app=web".parse().unwrap();
        assert!(selector.matches(&"app=web,tier=1".parse().unwrap()));
        assert!(!selector.matches(&"app=web".parse().unwrap()));
        assert!(!selector.matches(&"app=db,tier=1".parse().unwrap()));
        assert!(Selector::default().matches(&Labels::default()));
    }

    #[test]
    fn selector_without_meaning_is_refused() {
        let check = |selector: Selector, expected: &str| {
            assert_eq!(selector.validate().unwrap_err().to_string(), expected);
        };
        check(one("app", Operator::In, &[]), "selector: In on \"app\" needs values");
        check(one("app", Operator::Exists, &["x"]), "selector: Exists on \"app\" takes no values");
        check(
            one("app", Operator::In, &[""; 65]),
            "selector: 65 expressions or values, at most 64 are allowed",
        );
        assert_eq!(one("app", Operator::In, &[""; MAX_SELECTOR_PARTS]).validate(), Ok(()));
        let mut many = one("app", Operator::Exists, &[]);
        many.match_expressions = vec![many.match_expressions[0].clone(); MAX_SELECTOR_PARTS];
        assert_eq!(many.validate(), Ok(()));
        many.match_expressions.push(many.match_expressions[0].clone());
        assert_eq!(many.validate(), Err(SelectorError::TooMany(MAX_SELECTOR_PARTS + 1)));
        assert!(matches!(one("a b", Operator::Exists, &[]).validate(), Err(SelectorError::Label(_))));
        assert!(matches!(one("app", Operator::In, &["a b"]).validate(), Err(SelectorError::Label(_))));
    }
}

//! The page that a person sees first: what was spent and what is left.
//!
//! Must not know figures: it fetches the statement. Invariant: the page loads nothing from elsewhere, and shows text
//! of the record as text.

/// The page.
pub(crate) const PAGE: &str = include_str!("dashboard.html");

//! Recipient domain to destination.

use std::{collections::HashMap, fmt, sync::Arc};

use paceline_core::{
    Domain,
    lane::{INTAKE, TAIL},
};

/// A destination as configured: its name and the domains that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationSpec {
    pub name: String,
    pub domains: Vec<Domain>,
}

/// All destinations, by domain. Domains match exactly: a sub-domain is another domain.
#[derive(Debug, Clone)]
pub struct Destinations {
    by_domain: HashMap<Arc<str>, Arc<str>>,
    names: Vec<Arc<str>>,
    domains: Vec<Vec<Domain>>,
    tail: Arc<str>,
}

/// One thing wrong with a list of [`DestinationSpec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationProblem {
    /// Position of the destination in the list.
    pub spec: usize,
    /// Position of the domain at fault in its list, where it is one.
    pub domain: Option<usize>,
    pub problem: String,
}

/// Everything wrong with the list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct BadDestinations(pub Vec<DestinationProblem>);

impl fmt::Display for BadDestinations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sep = "";
        for p in &self.0 {
            write!(f, "{sep}destination {}: {}", p.spec + 1, p.problem)?;
            sep = "; ";
        }
        Ok(())
    }
}

impl Default for Destinations {
    /// Everything is tail.
    fn default() -> Destinations {
        Destinations { by_domain: HashMap::new(), names: vec![], domains: vec![], tail: TAIL.into() }
    }
}

impl Destinations {
    /// Checks names and claims.
    ///
    /// # Errors
    /// Every bad, reserved or repeated name, every destination without a domain, every domain claimed twice.
    pub fn new(specs: Vec<DestinationSpec>) -> Result<Destinations, BadDestinations> {
        let mut out = Destinations::default();
        let mut problems = vec![];
        for (i, spec) in specs.into_iter().enumerate() {
            let mut report = |domain, problem| problems.push(DestinationProblem { spec: i, domain, problem });
            if let Err(problem) = check_name(&spec.name) {
                report(None, problem);
            } else if out.names.iter().any(|n| **n == *spec.name) {
                report(None, format!("`{}` is named twice", spec.name));
            }
            if spec.domains.is_empty() {
                report(None, format!("`{}` has no domains", spec.name));
            }
            let name: Arc<str> = spec.name.into();
            for (d, domain) in spec.domains.iter().enumerate() {
                if let Some(owner) = out.by_domain.insert(domain.shared(), name.clone()) {
                    report(Some(d), format!("`{domain}` belongs to `{owner}` already"));
                }
            }
            out.names.push(name);
            out.domains.push(spec.domains);
        }
        if problems.is_empty() { Ok(out) } else { Err(BadDestinations(problems)) }
    }

    /// The destination of a domain: a shared name, `tail` where no destination claims it.
    pub fn lookup(&self, domain: &Domain) -> Arc<str> {
        self.by_domain.get(domain.as_str()).unwrap_or(&self.tail).clone()
    }

    /// The shared name of the tail.
    pub fn tail(&self) -> Arc<str> {
        self.tail.clone()
    }

    /// All names in order of configuration, without `tail`.
    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// Every destination with its domains, without `tail`.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &[Domain])> {
        self.names.iter().zip(self.domains.iter().map(Vec::as_slice))
    }
}

/// Whether a text may name a destination.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if name == TAIL || name == INTAKE {
        return Err(format!("`{name}` is reserved"));
    }
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > 40 || !name.bytes().all(fits) {
        return Err("a destination's name is 1 to 40 of a-z 0-9 _ -".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, domains: &[&str]) -> DestinationSpec {
        DestinationSpec { name: name.into(), domains: domains.iter().map(|d| Domain::parse(d).unwrap()).collect() }
    }

    #[test]
    fn lookup_is_exact_and_shared() {
        let d = Destinations::new(vec![spec("google", &["gmail.com", "googlemail.com"]), spec("b_1-x", &["bücher.example"])])
            .unwrap();
        for (domain, want) in [
            ("Gmail.COM", "google"),
            ("googlemail.com.", "google"),
            ("mail.gmail.com", "tail"),
            ("xn--bcher-kva.example", "b_1-x"),
            ("example.org", "tail"),
        ] {
            assert_eq!(&*d.lookup(&Domain::parse(domain).unwrap()), want, "{domain}");
        }
        assert_eq!(d.iter().map(|(n, domains)| (&**n, domains.len())).collect::<Vec<_>>(), [("google", 2), ("b_1-x", 1)]);
    }

    #[test]
    fn every_problem_at_once() {
        let err = Destinations::new(vec![
            spec("tail", &["a.org"]),
            spec("intake", &["b.org"]),
            spec("Big", &["c.org"]),
            spec("", &["d.org"]),
            spec("x", &["e.org", "E.org"]),
            spec("x", &[]),
            spec("y", &["a.org"]),
        ])
        .unwrap_err();
        let got: Vec<_> = err.0.iter().map(|p| (p.spec, p.domain, p.problem.as_str())).collect();
        assert_eq!(
            got,
            [
                (0, None, "`tail` is reserved"),
                (1, None, "`intake` is reserved"),
                (2, None, "a destination's name is 1 to 40 of a-z 0-9 _ -"),
                (3, None, "a destination's name is 1 to 40 of a-z 0-9 _ -"),
                (4, Some(1), "`e.org` belongs to `x` already"),
                (5, None, "`x` is named twice"),
                (5, None, "`x` has no domains"),
                (6, Some(0), "`a.org` belongs to `tail` already"),
            ]
        );
    }
}

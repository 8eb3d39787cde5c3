//! The table of processes. Ports, databases, addresses, the order of starts and the lists of the
//! command line all follow from it: a new service is one line here.

/// One process of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of the program, and of the role and the database if it has one.
    pub name: &'static str,
    /// Where its API listens by default.
    pub port: u16,
    /// Where its health and metrics listen by default.
    pub admin_port: u16,
    /// Whether it owns a database.
    pub database: bool,
    /// Whether it publishes events, in a stream of its own.
    pub publishes: bool,
    /// Whether it stands in for a system of another company, and so is no part of Sagacity.
    pub stand_in: bool,
}

/// In the order in which they start: those that others call come first.
pub const MEMBERS: &[Member] = &[
    Member::new("psp-sandbox", 12111, 9085).stand_in(),
    Member::new("inventory", 50053, 9083).database().publishes(),
    Member::new("payment", 50052, 9082).database().publishes(),
    Member::new("notification", 50054, 9084).database(),
    Member::new("order", 50051, 9081).database().publishes(),
    Member::new("gateway", 8080, 9080),
];

impl Member {
    const fn new(name: &'static str, port: u16, admin_port: u16) -> Self {
        Self {
            name,
            port,
            admin_port,
            database: false,
            publishes: false,
            stand_in: false,
        }
    }

    const fn database(mut self) -> Self {
        self.database = true;
        self
    }

    const fn publishes(mut self) -> Self {
        self.publishes = true;
        self
    }

    const fn stand_in(mut self) -> Self {
        self.stand_in = true;
        self
    }

    /// The setting through which the other processes learn its address, for example `ORDER_URL`.
    pub(crate) fn url_setting(&self) -> String {
        format!("{}_URL", self.name.to_uppercase().replace('-', "_"))
    }
}

/// The names of all processes, in the order in which they start.
pub fn services() -> impl DoubleEndedIterator<Item = &'static str> {
    MEMBERS.iter().map(|member| member.name)
}

/// The members that own a database.
pub fn with_database() -> impl Iterator<Item = &'static Member> {
    MEMBERS.iter().filter(|member| member.database)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_process_has_a_name_and_ports_of_its_own() {
        let names: HashSet<&str> = services().collect();
        assert_eq!(names.len(), MEMBERS.len());
        let ports = MEMBERS
            .iter()
            .flat_map(|member| [member.port, member.admin_port]);
        assert_eq!(ports.collect::<HashSet<u16>>().len(), 2 * MEMBERS.len());
    }
}

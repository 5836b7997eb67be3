//! Processor time as the kernel counts it.

use std::ops::{Index, IndexMut};

/// µs in one tick of `/proc`: Linux reports hundredths of a second.
const TICK_US: u64 = 10_000;

/// Whose processor time is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Client,
    RabbitMq,
    Redis,
    Sandbox,
    /// Everything else on the machine: this program, PostgreSQL, control, and whatever disturbs the measurement.
    Rest,
}

impl Who {
    pub(crate) const ALL: [Who; 5] = [Who::Client, Who::RabbitMq, Who::Redis, Who::Sandbox, Who::Rest];
}

/// µs of processor time, by whose it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cpu([u64; Who::ALL.len()]);

impl Index<Who> for Cpu {
    type Output = u64;

    fn index(&self, who: Who) -> &u64 {
        &self.0[who as usize]
    }
}

impl IndexMut<Who> for Cpu {
    fn index_mut(&mut self, who: Who) -> &mut u64 {
        &mut self.0[who as usize]
    }
}

impl Cpu {
    /// Used so far by these processes, and by all others.
    pub(crate) fn used(processes: &[(Who, u32)]) -> Cpu {
        let mut cpu = Cpu::default();
        for &(who, process) in processes {
            let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            cpu[who] += process_ticks(&stat) * TICK_US;
        }
        let known: u64 = cpu.0.iter().sum();
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        cpu[Who::Rest] = (machine_ticks(&stat) * TICK_US).saturating_sub(known);
        cpu
    }

    /// What was used since `earlier`.
    pub(crate) fn since(&self, earlier: &Cpu) -> Cpu {
        let mut difference = Cpu::default();
        for who in Who::ALL {
            difference[who] = self[who].saturating_sub(earlier[who]);
        }
        difference
    }
}

/// User and system time from `/proc/<pid>/stat`: fields 14 and 15. The name in parentheses may hold anything, so fields
/// are counted from behind it, where the third one starts.
fn process_ticks(stat: &str) -> u64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Time that was not idle from the first line of `/proc/stat`: user, nice, system, irq, softirq.
fn machine_ticks(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
    [0, 1, 2, 5, 6].iter().filter_map(|&i| fields.get(i)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read_past_any_name() {
        let stat = "7 (a) b 1 2) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 3 0 100 5 6";
        assert_eq!(process_ticks(stat), 200);
        assert_eq!(process_ticks(""), 0);
    }

    #[test]
    fn idle_and_waiting_are_not_work() {
        assert_eq!(machine_ticks("cpu  10 1 20 5000 300 2 3 99 0 0\ncpu0 1"), 36);
    }

    #[test]
    fn what_is_not_named_is_the_rest() {
        let me = [(Who::Client, std::process::id())];
        let before = Cpu::used(&me);
        let since = Cpu::used(&me).since(&before);
        assert_eq!((since[Who::Redis], before[Who::Redis]), (0, 0));
        assert!(before[Who::Rest] > 0);
    }
}

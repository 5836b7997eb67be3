//! The message broker port: RabbitMQ and in-memory adapters, and the topology as data.

"""A subscriber that keeps whole messages, properties too, for tests of few messages: paho-mqtt."""

import threading

import paho.mqtt.client as paho

from harness import wait_for


class PahoSubscriber:
    def __init__(self, port, filter="#"):
        self.messages = []
        self.subscribed = threading.Event()
        self.client = paho.Client(client_id="", protocol=paho.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(filter, qos=1)
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = lambda _client, _owner, message: self.messages.append(message)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.subscribed.wait(10), "no SUBACK"

    def wait(self, count, deadline_s=10):
        wait_for(lambda: len(self.messages) >= count,
                 lambda: f"{count} messages, {len(self.messages)} arrived", deadline_s)
        return self.messages[:count]

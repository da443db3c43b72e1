"""Fakes of Flower's Grid that answer at once."""

from itertools import count

_ids = count(1)


class AnswersAtOnce:
    """Gives a fake with `send_and_receive` the other way of messages: they are answered as they are pushed."""

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m-{next(_ids)}"
        self.replies = [*getattr(self, "replies", []), *self.send_and_receive(messages, None)]
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids):
        found = [reply for reply in self.replies if reply.metadata.reply_to_message_id in message_ids]
        self.replies = [reply for reply in self.replies if reply not in found]
        return found
